"""Who may do what on NATS, tried out on the real server: each allowance, and each way around that we could think of."""

import asyncio
import gc
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import nats.errors
import nats.js.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy, StreamConfig
from nats.js.client import JetStreamContext

from modelyard_events.ids import NodeName
from modelyard_events.subjects import (
    inbox_prefix,
    node_command_subject,
    node_subject,
    node_telemetry_subject,
    worker_subject,
)
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import EmbeddedNats, embedded_nats
from modelyard_services.effects.log.streams import Layout
from modelyard_services.effects.nats_access.callout import AuthCallout
from modelyard_services.effects.nats_access.keys import Issuer
from modelyard_services.effects.nats_access.node_log import NodeLog, offer_node_log
from modelyard_services.effects.nats_access.readers import keep_copy
from modelyard_services.effects.nats_access.roles import (
    Reader,
    Role,
    Worker,
    node_consumer,
    node_feed_subject,
)

A, B = NodeName("a.node"), NodeName("b/node")
TOKEN = "registration-token"  # noqa: S105 - of this test's own server
READER_TOKEN = "reader-token"  # noqa: S105
SETTLE_SECONDS = 0.15


class Yard:
    """A server with the real streams, a callout that knows two tokens, and a log with something to steal."""

    def __init__(self, server: EmbeddedNats, tree: ProcessTree) -> None:
        self.server = server
        self.control = Client()
        self.tree = tree
        self.refusals: asyncio.Queue[str] = asyncio.Queue()
        self.revoked: set[str] = set()
        self._clients: list[Client] = []

    async def connect(self, url: str, **options: object) -> Client:
        async def on_error(error: Exception) -> None:
            self.refusals.put_nowait(str(error))

        client = Client()
        self._clients.append(client)
        await client.connect(url, error_cb=on_error, **options)  # type: ignore[arg-type]
        return client

    async def worker(self, node: NodeName, *, token: str = TOKEN, reconnect: bool = False) -> Client:
        return await self._connect_as(node, token, reconnect=reconnect)

    async def reader(self, name: str = "billing") -> Client:
        return await self._connect_as(name, READER_TOKEN, reconnect=False)

    async def _connect_as(self, name: str, token: str, *, reconnect: bool) -> Client:
        prefix = inbox_prefix(name).encode()
        return await self.connect(
            self.server.url,
            user=name,
            password=token,
            inbox_prefix=prefix,
            allow_reconnect=reconnect,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.05,
        )

    async def answer_callouts(self) -> Client:
        client = await self.connect(self.server.callout_url)
        await AuthCallout(client, self.verify, issuer=Issuer(self.server.keys.issuer_seed), clock=Clock()).start()
        return client

    async def verify(self, name: str, password: str) -> Role | None:
        if name == "trouble":
            raise OSError("the token store is away")
        if name in self.revoked:
            return None
        match password:
            case "registration-token":
                return Worker(NodeName(name))
            case "reader-token":
                return Reader(name)
            case _:
                return None

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def opened(directory: Path) -> AsyncIterator[Yard]:
    async with ProcessTree(directory / "run") as tree:
        server = embedded_nats(directory)
        await tree.start(server.child)
        yard = Yard(server, tree)
        try:
            yard.control = await yard.connect(server.control_url)
            yield yard
        finally:
            await yard.close()


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with opened(tmp_path) as yard:
        await yard.answer_callouts()
        await _fill(yard.control.jetstream())
        yield yard


async def _fill(stream: JetStreamContext) -> None:
    await stream.add_stream(StreamConfig(name="LOG", subjects=["modelyard.log.>"], deny_delete=True, deny_purge=True))
    await stream.add_stream(StreamConfig(name="EVENTS", subjects=["modelyard.events.>"], allow_direct=True))
    await stream.add_stream(StreamConfig(name="TELEMETRY", subjects=["modelyard.telemetry.>"]))
    for node in (A, B, A):
        await stream.publish(node_subject(node), f"secret of {node}".encode())
    await stream.publish("modelyard.events.node.a.registered", b"public")


# What a worker may do


async def test_a_worker_asks_the_registrar(yard: Yard) -> None:
    await _answering(yard.control, "modelyard.cmd.node.*.*")
    worker = await yard.worker(A)
    reply = await worker.request(node_command_subject(A, "register"), b"here I am")
    assert reply.data == b"answer to modelyard.cmd.node.a=2Enode.register"


async def test_a_worker_learns_at_once_that_no_registrar_is_there(yard: Yard) -> None:
    worker = await yard.worker(A)
    with pytest.raises(nats.errors.NoRespondersError):
        await worker.request(node_command_subject(A, "register"), b"here I am", timeout=5)


async def test_a_worker_tells_its_telemetry(yard: Yard) -> None:
    worker = await yard.worker(A)
    await worker.publish(node_telemetry_subject(A), b"beat")
    await worker.flush()
    stored = await yard.control.jetstream().get_last_msg("TELEMETRY", node_telemetry_subject(A))
    assert stored.data == b"beat"


async def test_a_worker_answers_questions_about_itself_even_in_many_messages(yard: Yard) -> None:
    worker = await yard.worker(A)

    async def tell(message: Msg) -> None:
        for line in (b"first", b"second", b"third"):
            await message.respond(line)

    await worker.subscribe(worker_subject(A, "*"), cb=tell)
    await worker.flush()
    inbox = yard.control.new_inbox()
    replies = await yard.control.subscribe(inbox)
    await yard.control.publish(worker_subject(A, "logs"), b"", reply=inbox)
    assert [(await replies.next_msg(timeout=2)).data for _ in range(3)] == [b"first", b"second", b"third"]


async def test_a_worker_follows_its_own_node_and_only_that(yard: Yard) -> None:
    """Both what stands in the log and what comes."""
    followed = _followed(yard, await yard.worker(A), after=0)
    bodies = [await anext(followed), await anext(followed)]
    await yard.control.jetstream().publish(node_subject(B), b"not for a")
    await yard.control.jetstream().publish(node_subject(A), b"new")
    assert [*bodies, await anext(followed)] == [(1, b"secret of a.node"), (3, b"secret of a.node"), (5, b"new")]
    await followed.aclose()


async def test_a_worker_follows_on_where_it_stood(yard: Yard) -> None:
    followed = _followed(yard, await yard.worker(A), after=1)
    assert await anext(followed) == (3, b"secret of a.node")
    await followed.aclose()


# nats-py drops the broken connection's writer unclosed when it reconnects; that is not ours to fail on.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_a_worker_follows_on_through_a_killed_server_and_a_lost_offer(yard: Yard) -> None:
    followed = _followed(yard, await yard.worker(A, reconnect=True), after=1)
    assert await anext(followed) == (3, b"secret of a.node")
    manager = yard.control.jetstream()
    await manager.delete_consumer("LOG", node_consumer(A))
    await manager.publish(node_subject(A), b"after the lost offer")
    assert await anext(followed) == (4, b"after the lost offer")
    _kill_server(yard)
    await _until(lambda: _published(manager, node_subject(A), b"after the crash"))
    # The dead server may have stored a publish that it never acknowledged; the follower sees whatever stands there.
    assert (await anext(followed))[1] == b"after the crash"
    await followed.aclose()
    gc.collect()


# What a worker may not do


@pytest.mark.parametrize(
    "subject",
    [
        node_subject(A),
        node_subject(B),
        "modelyard.log.fleet",
        "modelyard.lease.reconciler",
        "modelyard.events.node.a.registered",
        node_command_subject(B, "register"),
        "modelyard.cmd.node.a=2Enode.register.more",
        node_telemetry_subject(B),
        "modelyard.telemetry.router.r1",
        node_feed_subject(B),
        worker_subject(B, "stop"),
        f"{inbox_prefix(B)}.guess",
        "$SYS.REQ.USER.AUTH",
        "$SYS.REQ.SERVER.PING",
        "$JS.API.INFO",
        "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.INFO.LOG",
        "$JS.API.STREAM.CREATE.STEAL",
        "$JS.API.STREAM.UPDATE.LOG",
        "$JS.API.STREAM.DELETE.LOG",
        "$JS.API.STREAM.PURGE.LOG",
        "$JS.API.STREAM.SNAPSHOT.LOG",
        "$JS.API.STREAM.MSG.GET.LOG",
        "$JS.API.STREAM.MSG.DELETE.LOG",
        "$JS.API.DIRECT.GET.LOG",
        f"$JS.API.DIRECT.GET.LOG.{node_subject(B)}",
        "$JS.API.CONSUMER.CREATE.LOG",
        f"$JS.API.CONSUMER.CREATE.LOG.c.{node_subject(B)}",
        f"$JS.API.CONSUMER.CREATE.LOG.c.{node_subject(A)}",
        "$JS.API.CONSUMER.CREATE.LOG.c",
        "$JS.API.CONSUMER.DURABLE.CREATE.LOG.c",
        f"$JS.API.CONSUMER.MSG.NEXT.LOG.{node_consumer(B)}",
        f"$JS.API.CONSUMER.DELETE.LOG.{node_consumer(B)}",
        f"$JS.API.CONSUMER.INFO.LOG.{node_consumer(B)}",
        "$JS.FC.LOG.c.x",
        "$JS.MODELYARD.API.CONSUMER.CREATE.EVENTS.c",
    ],
)
async def test_a_worker_can_not_publish_to(subject: str, yard: Yard) -> None:
    worker = await yard.worker(A)
    await worker.publish(subject, b"{}")
    await worker.flush()
    assert "permissions violation for publish" in await _refusal(yard)


@pytest.mark.parametrize(
    "subject",
    [
        ">",
        "*",
        "modelyard.>",
        "modelyard.log.>",
        node_subject(A),
        "modelyard.events.>",
        "modelyard.cmd.>",
        node_command_subject(A, "*"),
        "modelyard.telemetry.>",
        "modelyard.feed.*",
        worker_subject(B, "*"),
        "modelyard.worker.*.*",
        "modelyard.copy.>",
        "_INBOX.>",
        "_INBOX.*.*",
        f"{inbox_prefix(B)}.>",
        "_R_.>",
        "_R_.*.*",
        "$JS.ACK.>",
        "$SYS.>",
        "$SYS.REQ.USER.AUTH",
    ],
)
async def test_a_worker_can_not_subscribe_to(subject: str, yard: Yard) -> None:
    worker = await yard.worker(A)
    await worker.subscribe(subject)
    await worker.flush()
    assert "permissions violation for subscription" in await _refusal(yard)


@pytest.mark.parametrize(
    "reply",
    [
        node_subject(A),
        "modelyard.log.fleet",
        "modelyard.lease.reconciler",
        "modelyard.events.node.a.registered",
        node_telemetry_subject(B),
        node_command_subject(B, "register"),
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.STREAM.PURGE.TELEMETRY",
        node_feed_subject(B),
    ],
)
async def test_a_worker_can_not_write_through_the_reply_to_its_question(reply: str, yard: Yard) -> None:
    """The server checks where a client publishes, not where it wants the answer: accounts must keep the answer in."""
    heard = await yard.control.subscribe("modelyard.cmd.node.b/node.*")
    await _answering(yard.control, node_command_subject(A, "*"))
    stream = yard.control.jetstream()
    await offer_node_log(stream, A, after=0)
    before = await _contents(stream)
    worker = await yard.worker(A)
    await worker.publish(node_command_subject(A, "register"), b"bounce me", reply=reply)
    await worker.publish(node_feed_subject(A), b'{"batch": 2}', reply=reply)
    await worker.flush()
    await asyncio.sleep(SETTLE_SECONDS)
    assert await _contents(stream) == before
    assert heard.pending_msgs == 0


async def test_a_name_full_of_wildcards_widens_nothing(yard: Yard) -> None:
    worker = await yard.worker(NodeName("*"))
    for subject in (node_command_subject(A, "register"), "modelyard.cmd.node.*.register"):
        await worker.publish(subject, b"")
        await worker.flush()
        assert "permissions violation for publish" in await _refusal(yard)
    await worker.subscribe("_INBOX.*.>")
    await worker.flush()
    assert "permissions violation for subscription" in await _refusal(yard)


async def test_two_nodes_never_share_a_consumer() -> None:
    names = [node_consumer(NodeName(name)) for name in ("a", "b", "a.b", "a/b", "a=2Fb", "ä" * 253, "ä" * 252)]
    assert len(set(names)) == len(names)
    assert all(len(name) < 64 and not set(name) & set(" ./\\*>") for name in names)


# Getting in


@pytest.mark.parametrize("token", ["", "guessed", READER_TOKEN[:-1]])
async def test_nobody_gets_in_with_a_wrong_token(token: str, yard: Yard) -> None:
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await yard.worker(A, token=token)


@pytest.mark.parametrize("user", ["control", "callout", "copier", "system"])
async def test_a_token_does_not_make_a_control_plane_user(user: str, yard: Yard) -> None:
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await yard.worker(NodeName(user))


async def test_nobody_gets_in_while_it_can_not_be_known_who_it_is(yard: Yard) -> None:
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await yard.worker(NodeName("trouble"))


async def test_a_revoked_worker_is_kept_out_when_it_comes_back(yard: Yard) -> None:
    worker = await yard.worker(A)
    yard.revoked.add(A)
    await worker.close()
    with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
        await yard.worker(A)


async def test_workers_wait_for_a_registrar_and_get_in_once_it_answers(tmp_path: Path) -> None:
    async with opened(tmp_path) as yard:
        waiting = asyncio.create_task(yard.worker(A, reconnect=True))
        await asyncio.wait([waiting], timeout=1)
        assert not waiting.done()
        await yard.answer_callouts()
        async with asyncio.timeout(30):
            worker = await waiting
        assert worker.is_connected


async def test_the_control_plane_works_without_a_callout(tmp_path: Path) -> None:
    async with opened(tmp_path) as yard:
        assert (await yard.control.jetstream().account_info()).streams == 0


async def test_tokens_are_seen_by_the_callout_alone(yard: Yard) -> None:
    heard = await yard.control.subscribe(">")
    await yard.control.flush()
    await yard.worker(A)
    await asyncio.sleep(SETTLE_SECONDS)
    messages = [await heard.next_msg(timeout=1) for _ in range(heard.pending_msgs)]
    assert not [message for message in messages if TOKEN.encode() in message.data or b"." in message.data]


# Readers


async def test_a_reader_follows_the_lifecycle_stream_under_the_same_sequences(yard: Yard) -> None:
    reader = await _reader(yard)
    subscription = await reader.jetstream().subscribe("modelyard.events.>", stream="EVENTS", ordered_consumer=True)
    first = await subscription.next_msg(timeout=3)
    await yard.control.jetstream().publish("modelyard.events.node.b.registered", b"second")
    second = await subscription.next_msg(timeout=3)
    assert [(m.metadata.sequence.stream, m.subject, m.data) for m in (first, second)] == [
        (1, "modelyard.events.node.a.registered", b"public"),
        (2, "modelyard.events.node.b.registered", b"second"),
    ]


async def test_a_reader_may_keep_a_durable_place(yard: Yard) -> None:
    reader = await _reader(yard)
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, deliver_policy=DeliverPolicy.ALL)
    place = await reader.jetstream().pull_subscribe(
        "modelyard.events.>", durable="billing", stream="EVENTS", config=config
    )
    (message,) = await place.fetch(1, timeout=3)
    await message.ack_sync()
    assert message.data == b"public"


@pytest.mark.parametrize(
    "subject",
    [
        "modelyard.events.node.a.registered",
        "modelyard.log.fleet",
        "modelyard.lease.reconciler",
        "$JS.API.STREAM.CREATE.MINE",
        "$JS.API.STREAM.UPDATE.EVENTS",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.API.STREAM.DELETE.EVENTS",
        "$JS.API.STREAM.MSG.DELETE.EVENTS",
        "$JS.API.STREAM.MSG.GET.LOG",
        "$JS.API.DIRECT.GET.LOG",
        "$JS.API.CONSUMER.CREATE.LOG.c",
        "$JS.MODELYARD.API.CONSUMER.CREATE.EVENTS.c",
        "modelyard.cmd.node.a.register",
    ],
)
async def test_a_reader_can_not_publish_to(subject: str, yard: Yard) -> None:
    reader = await yard.reader()
    await reader.publish(subject, b"{}")
    await reader.flush()
    assert "permissions violation for publish" in await _refusal(yard)


@pytest.mark.parametrize("subject", [">", "modelyard.>", "modelyard.copy.>", "_INBOX.>", "_INBOX.other.*", "$JS.>"])
async def test_a_reader_can_not_subscribe_to(subject: str, yard: Yard) -> None:
    reader = await yard.reader()
    await reader.subscribe(subject)
    await reader.flush()
    assert "permissions violation for subscription" in await _refusal(yard)


@pytest.mark.parametrize(
    "target",
    [
        "modelyard.log.fleet",
        "modelyard.lease.reconciler",
        "modelyard.events.node.a.registered",
        "modelyard.cmd.node.a.register",
        "$JS.API.STREAM.PURGE.EVENTS",
        "$JS.MODELYARD.API.CONSUMER.CREATE.EVENTS.mine",
    ],
)
async def test_a_reader_can_not_write_through_its_consumers_and_replies(target: str, yard: Yard) -> None:
    reader = await _reader(yard)
    copier = await yard.connect(yard.server.copier_url)
    heard = await yard.control.subscribe("modelyard.cmd.>")
    before = await _contents(yard.control.jetstream()), await _consumers(yard)
    create = {
        "stream_name": "EVENTS",
        "config": {"name": "mine", "deliver_subject": target, "ack_policy": "none", "mem_storage": True},
    }
    await reader.publish("$JS.API.CONSUMER.CREATE.EVENTS.mine", msgspec.json.encode(create))
    await reader.publish("$JS.API.STREAM.INFO.EVENTS", b"", reply=target)
    await reader.flush()
    await asyncio.sleep(SETTLE_SECONDS)
    assert (await _contents(yard.control.jetstream()), await _consumers(yard)) == before
    assert (await copier.jetstream().stream_info("EVENTS")).state.messages == 1
    assert heard.pending_msgs == 0


async def _reader(yard: Yard) -> Client:
    copier = await yard.connect(yard.server.copier_url)
    stream = copier.jetstream()
    await keep_copy(stream, Layout())

    async def copied() -> bool:
        return (await stream.stream_info("EVENTS")).state.messages == 1

    await _until(copied)
    return await yard.reader()


async def _answering(client: Client, pattern: str) -> None:
    async def answer(message: Msg) -> None:
        await message.respond(f"answer to {message.subject}".encode())

    await client.subscribe(pattern, cb=answer)
    await client.flush()


async def _refusal(yard: Yard) -> str:
    async with asyncio.timeout(3):
        return (await yard.refusals.get()).lower()


async def _contents(stream: JetStreamContext) -> list[int]:
    return [(await stream.stream_info(name)).state.messages for name in ("LOG", "EVENTS", "TELEMETRY")]


async def _consumers(yard: Yard) -> int:
    return len(await yard.control.jetstream().consumers_info("EVENTS"))


async def _followed(yard: Yard, worker: Client, *, after: int) -> AsyncGenerator[tuple[int, bytes], None]:
    async def offer(sequence: int) -> None:
        await offer_node_log(yard.control.jetstream(), A, after=sequence)

    async for chunk in NodeLog(worker, A, offer, clock=Clock()).follow(after=after):
        for stored in chunk:
            yield stored.sequence, stored.body


def _kill_server(yard: Yard) -> None:
    pid = yard.tree.report()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


async def _published(stream: JetStreamContext, subject: str, body: bytes) -> bool:
    try:
        await stream.publish(subject, body, timeout=0.5)
    except (nats.errors.Error, nats.js.errors.Error):
        return False
    return True


async def _until(done: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await done():  # noqa: ASYNC110 - the server has no event for it
            await asyncio.sleep(0.05)
