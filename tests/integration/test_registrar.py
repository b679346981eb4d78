"""The registrar on a real NATS server, asked by workers that are let in by their registration token alone."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import nats.errors
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelyard_events.envelope import Actor, AnyEvent
from modelyard_events.fleet import (
    FleetRegistrationTokenCreated,
    FleetRegistrationTokenRevoked,
    FleetSettingsChanged,
    FleetTokenCreated,
    Settings,
)
from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.node import NodeFacts, NodeLost, NodeMaxReplicasOverridden
from modelyard_events.requests import (
    BEAT,
    FACTS_MAX,
    PING,
    Fact,
    Loaded,
    LoadStarted,
    Measured,
    Offer,
    Offered,
    OfferReply,
    Refused,
    Register,
    Registered,
    RegisterReply,
    Report,
    Reported,
    ReportReply,
    Stopped,
)
from modelyard_events.subjects import inbox_prefix, node_command_subject, worker_subject
from modelyard_projections.fleet import Fleet, Lost, Ready
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import EmbeddedNats, embedded_nats
from modelyard_services.effects.nats_access.node_log import NodeLog
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.intent import remove
from modelyard_services.policy.tokens import digest_of
from modelyard_services.registrar.main import serving
from modelyard_services.registrar.settings import RegistrarSettings
from modelyard_services.settings import CalloutSettings, NatsSettings, ProcessSettings
from tests.support.given import GIB, a_model, a_placed_replica, some_facts, some_process

N1 = NodeName("n.1")
FIRST_LIFE, SECOND_LIFE = IncarnationId("life-1"), IncarnationId("life-2")
TOKEN, ROTATED_TOKEN, READER_TOKEN = "join me", "join me now", "read me"
SECRET, RIVALS_SECRET = "state directory", "another state directory"
R1 = ReplicaId("r-1")
STOPS = 40
"""Moments of one arrival at which a follower is stopped; a few of them hit the step that matters."""

Reply = TypeVar("Reply")


class Yard:
    """A server that lets nobody in but by the callout, and a registrar that answers it."""

    def __init__(self, server: EmbeddedNats, runtime: Runtime) -> None:
        self.server = server
        self.runtime = runtime
        self._clients: list[Client] = []

    @property
    def fleet(self) -> Fleet:
        return self.runtime.fleet

    async def decide(self, *events: AnyEvent) -> None:
        """Append `events` as an operator."""
        await self.commit(lambda _fleet: events)

    async def commit(self, decide: Callable[[Fleet], object]) -> None:
        await self.runtime.journal.commit(self.runtime.envelope(Actor("operator", "test")), decide)  # type: ignore[arg-type]

    async def worker(self, token: str = TOKEN) -> Client:
        client = Client()
        self._clients.append(client)
        await client.connect(
            self.server.url,
            user=N1,
            password=token,
            inbox_prefix=inbox_prefix(N1).encode(),
            allow_reconnect=False,
        )
        return client

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_nats(tmp_path)
        await tree.start(server.child)
        settings = RegistrarSettings(
            ProcessSettings("registrar", NatsSettings(server.control_url)),
            auto_approve=True,
            callout=CalloutSettings(server.callout_url, server.keys.issuer_seed),
        )
        async with serving(settings) as runtime:
            await runtime.wait_ready(timeout_seconds=10)
            yard = Yard(server, runtime)
            await yard.decide(FleetRegistrationTokenCreated(name="default", digest=digest_of(TOKEN)))
            yield yard
            await yard.close()


async def asked(client: Client, verb: str, body: object, reply: type[Reply]) -> Reply:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    answer = await client.request(node_command_subject(N1, verb), raw, timeout=8)
    return msgspec.json.decode(answer.data, type=reply)


async def registered(
    client: Client, incarnation: IncarnationId = FIRST_LIFE, *, secret: str = SECRET, token: str = TOKEN
) -> RegisterReply:
    request = Register(
        node=N1, node_type="backend", incarnation=incarnation, facts=some_facts(slots=2), secret=secret, token=token
    )
    return await asked(client, "register", request, RegisterReply)  # type: ignore[arg-type]  # a union is no type


async def reported(
    client: Client, *facts: Fact, number: int = 1, incarnation: IncarnationId = FIRST_LIFE
) -> ReportReply:
    return await asked(client, "report", Report(N1, incarnation, number, facts), ReportReply)  # type: ignore[arg-type]


async def answering_pings(client: Client, incarnation: IncarnationId) -> None:
    async def on_ping(message: Msg) -> None:
        if message.data == incarnation.encode():
            await message.respond(message.data)

    await client.subscribe(worker_subject(N1, PING), cb=on_ping)
    await client.flush()


async def placed(yard: Yard) -> None:
    await yard.decide(*a_model(), *a_placed_replica(node=N1))


async def test_a_worker_registers_and_the_log_says_who_it_was(yard: Yard) -> None:
    """N2, N4, H1."""
    before = yard.fleet.sequence
    reply = await registered(await yard.worker())
    assert reply == Registered("approved", yard.fleet.sequence, 10.0)
    assert yard.runtime.log is not None
    stored = [await yard.runtime.log.read(sequence) for sequence in range(before + 1, yard.fleet.sequence + 1)]
    entries = [msgspec.json.decode(message.body) for message in stored if message is not None]
    assert [entry["event"]["type"] for entry in entries] == [
        "node.registered.v1",
        "node.incarnation_started.v1",
        "node.approved.v1",
    ]
    assert all(entry["envelope"]["actor"] == {"kind": "worker", "name": N1} for entry in entries)
    assert not any(secret.encode() in message.body for message in stored if message for secret in (TOKEN, SECRET))


async def test_a_worker_that_registers_again_changes_nothing(yard: Yard) -> None:
    """N2, I11."""
    worker = await yard.worker()
    first = await registered(worker)
    assert await registered(worker) == first


async def test_a_lost_worker_recovers_by_the_very_request_it_came_with(yard: Yard) -> None:
    """N9: the same bytes mean something new, however often it is lost."""
    worker = await yard.worker()
    await registered(worker)
    for _ in range(2):
        await yard.decide(NodeLost(node=N1, incarnation=FIRST_LIFE, silent_seconds=60, grace_seconds=600))
        assert isinstance(yard.fleet.nodes[N1].liveness, Lost)
        await registered(worker)
        assert not isinstance(yard.fleet.nodes[N1].liveness, Lost)


async def test_a_rival_is_refused_while_the_first_worker_answers(yard: Yard) -> None:
    """N3: though the rival listens on the same subject, and would answer with its own life."""
    first, rival = await yard.worker(), await yard.worker()
    await registered(first)
    await answering_pings(first, FIRST_LIFE)
    await answering_pings(rival, SECOND_LIFE)
    reply = await registered(rival, SECOND_LIFE, secret=RIVALS_SECRET)
    assert isinstance(reply, Refused)
    assert reply.code == "name_taken"
    assert FIRST_LIFE in reply.detail
    assert yard.fleet.nodes[N1].incarnation == FIRST_LIFE


async def test_a_worker_that_answers_no_ping_yields_its_name(yard: Yard) -> None:
    """N3: its rival's own answer on the subject is none."""
    rival = await yard.worker()
    await registered(await yard.worker())

    async def on_ping(message: Msg) -> None:
        await message.respond(SECOND_LIFE.encode())

    await rival.subscribe(worker_subject(N1, PING), cb=on_ping)
    await rival.flush()
    assert isinstance(await registered(rival, SECOND_LIFE, secret=RIVALS_SECRET), Registered)
    assert yard.fleet.nodes[N1].incarnation == SECOND_LIFE


async def test_how_long_a_ping_may_take_is_a_setting(yard: Yard) -> None:
    """N3, S1: far below the rule's two seconds."""
    await registered(await yard.worker())
    rival = await yard.worker()
    await yard.decide(FleetSettingsChanged(settings=Settings(ping_seconds=0.1), changed=("ping_seconds",)))
    began = time.monotonic()
    assert isinstance(await registered(rival, SECOND_LIFE, secret=RIVALS_SECRET), Registered)
    assert time.monotonic() - began < 1.5


async def test_workers_are_told_how_often_to_tell_that_they_live(yard: Yard) -> None:
    """N8, S1: with their registration, and when the setting is changed."""
    worker = await yard.worker()
    told: list[bytes] = []

    async def on_beat(message: Msg) -> None:
        told.append(message.data)

    await worker.subscribe(worker_subject(N1, BEAT), cb=on_beat)
    await worker.flush()
    first = await registered(worker)
    assert isinstance(first, Registered)
    assert first.heartbeat_seconds == 10
    await yard.decide(FleetSettingsChanged(settings=Settings(heartbeat_seconds=3.0), changed=("heartbeat_seconds",)))
    async with asyncio.timeout(10):
        while not told or told[-1] != b"3.0":  # noqa: ASYNC110 - the server brings it
            await asyncio.sleep(0.01)
    again = await registered(worker)
    assert isinstance(again, Registered)
    assert again.heartbeat_seconds == 3


async def test_a_restart_takes_over_at_once(yard: Yard) -> None:
    """N3: without a ping, though the old life would still answer one."""
    first, second = await yard.worker(), await yard.worker()
    await registered(first)
    await answering_pings(first, FIRST_LIFE)
    async with asyncio.timeout(1.5):
        assert isinstance(await registered(second, SECOND_LIFE), Registered)
    stale = await reported(first, Stopped(R1))
    assert isinstance(stale, Refused)
    assert stale.code == "stale_fact"
    assert SECOND_LIFE in stale.detail


async def test_a_load_is_decided_from_its_reports(yard: Yard) -> None:
    """W1, R3."""
    worker = await yard.worker()
    await registered(worker)
    await placed(yard)
    started = await reported(worker, LoadStarted(R1, some_process()))
    assert started == Reported(yard.fleet.sequence)
    loaded = await reported(worker, Loaded(R1, "127.0.0.1:9", memory={0: 2 * GIB}), number=2)
    assert loaded == Reported(yard.fleet.sequence)
    assert isinstance(yard.fleet.replicas[R1].phase, Ready)
    assert yard.fleet.nodes[N1].reserved == {0: 2 * GIB}


async def test_a_report_sent_again_is_decided_once_and_what_came_since_too(yard: Yard) -> None:
    """I11, W8: the answer to the first was lost, more facts came, the number is the same."""
    worker = await yard.worker()
    await registered(worker)
    await placed(yard)
    fact = LoadStarted(R1, some_process())
    first = await reported(worker, fact)
    assert await reported(worker, fact) == first
    await reported(worker, fact, Loaded(R1, "127.0.0.1:9"))
    assert isinstance(yard.fleet.replicas[R1].phase, Ready)


async def test_facts_that_came_too_late_are_named(yard: Yard) -> None:
    """W1."""
    worker = await yard.worker()
    await registered(worker)
    reply = await reported(worker, Stopped(ReplicaId("r-9")))
    assert isinstance(reply, Reported)
    assert "has ended" in reply.stale[ReplicaId("r-9")]


async def test_a_long_report_is_decided_part_by_part(yard: Yard) -> None:
    """W8."""
    worker = await yard.worker()
    await registered(worker)
    late = tuple(Measured(ReplicaId(f"r-{number}"), {0: 1}) for number in range(FACTS_MAX))
    reply = await reported(worker, *late)
    assert isinstance(reply, Reported)
    assert len(reply.stale) == FACTS_MAX


async def test_a_removed_nodes_worker_is_gone_and_registers_afresh(yard: Yard) -> None:
    """N13, X10."""
    worker = await yard.worker()
    await registered(worker)
    await yard.commit(lambda fleet: remove(fleet, node=N1))
    for reply in (await reported(worker, Stopped(R1)), await asked(worker, "offer", Offer(N1, FIRST_LIFE, 0), Refused)):
        assert isinstance(reply, Refused)
        assert reply.code == "gone"
    assert isinstance(await registered(worker), Registered)
    assert N1 in yard.fleet.nodes


async def test_a_worker_is_told_where_its_own_node_stands_whoever_wrote_last(yard: Yard) -> None:
    """X26, W1: it waits for that event before it acts, and hears its own node's alone."""
    worker = await yard.worker()
    await registered(worker)
    await placed(yard)
    for life in (FIRST_LIFE, SECOND_LIFE):  # the second one ends the replica, which its model's event says last
        reply = await registered(worker, life)
        assert isinstance(reply, Registered)
        assert reply.sequence == yard.fleet.node_sequence(N1) < yard.fleet.sequence


async def test_a_worker_is_offered_its_own_events(yard: Yard) -> None:
    """W1."""
    worker = await yard.worker()
    await registered(worker)

    async def offer(after: int) -> None:
        reply: object = await asked(worker, "offer", Offer(N1, FIRST_LIFE, after), OfferReply)  # type: ignore[arg-type]
        assert reply == Offered()

    types = []
    async with asyncio.timeout(5):
        async for chunk in NodeLog(worker, N1, offer, clock=Clock()).follow(after=0):
            types += [msgspec.json.decode(one.body)["event"]["type"] for one in chunk]
            if len(types) == 3:
                break
    assert types == ["node.registered.v1", "node.incarnation_started.v1", "node.approved.v1"]


async def test_a_worker_can_stop_following_at_the_very_moment_an_event_arrives(yard: Yard) -> None:
    """W1, W8: a stop that gets lost then leaves a worker that nothing but SIGKILL ends."""
    worker = await yard.worker()
    await registered(worker)

    async def offer(after: int) -> None:
        await asked(worker, "offer", Offer(N1, FIRST_LIFE, after), OfferReply)  # type: ignore[arg-type]

    async def follow() -> None:
        async for chunk in NodeLog(worker, N1, offer, clock=Clock()).follow(after=yard.fleet.sequence):
            assert chunk

    for number in range(STOPS):
        following = asyncio.create_task(follow())
        await asyncio.sleep(0.05)
        await yard.decide(NodeMaxReplicasOverridden(node=N1, max_replicas_per_model=number % 2 + 1))
        for _ in range(number % 10):
            await asyncio.sleep(0)
        following.cancel()
        _done, pending = await asyncio.wait({following}, timeout=5)
        assert not pending, f"stop {number} was lost"


@pytest.mark.parametrize(
    ("verb", "body", "saying"),
    [
        ("register", b"{", "truncated"),
        ("register", b"[]", "Expected `object`"),
        ("report", b'{"node": "n.1"}', "incarnation"),
        ("report", msgspec.json.encode(Report(NodeName("n2"), FIRST_LIFE, 1, ())), "n.1"),
        ("vanish", b"{}", "verb"),
        (
            "register",
            msgspec.json.encode(Register(N1, "backend", IncarnationId("a b"), NodeFacts(address="a:1"), SECRET, TOKEN)),
            "incarnation",
        ),
    ],
)
async def test_what_cant_be_read_is_answered_with_what_is_wrong(
    yard: Yard, verb: str, body: bytes, saying: str
) -> None:
    worker = await yard.worker()
    reply = await asked(worker, verb, body, Refused)
    assert reply.code == "invalid_request"
    assert saying in reply.detail
    assert isinstance(await registered(worker), Registered)


async def test_a_wrong_token_neither_connects_nor_registers(yard: Yard) -> None:
    """N4."""
    with pytest.raises(nats.errors.Error):
        await yard.worker("guess")
    reply = await registered(await yard.worker(), token=ROTATED_TOKEN)
    assert isinstance(reply, Refused)
    assert reply.code == "unauthorized"


async def test_a_rotated_token_is_the_only_one_that_opens(yard: Yard) -> None:
    """N4."""
    await yard.decide(
        FleetRegistrationTokenRevoked(name="default"),
        FleetRegistrationTokenCreated(name="default", digest=digest_of(ROTATED_TOKEN)),
    )
    with pytest.raises(nats.errors.Error):
        await yard.worker()
    worker = await yard.worker(ROTATED_TOKEN)
    assert isinstance(await registered(worker, token=ROTATED_TOKEN), Registered)


async def test_api_tokens_open_the_lifecycle_stream_and_nothing_of_the_workers(yard: Yard) -> None:
    """N4."""
    await yard.decide(FleetTokenCreated(name="billing", role="viewer", digest=digest_of(READER_TOKEN)))
    reader = await yard.worker(READER_TOKEN)
    with pytest.raises(nats.errors.TimeoutError):
        await reader.request(node_command_subject(N1, "register"), b"{}", timeout=0.3)


async def test_two_hundred_workers_reconnect_at_once(yard: Yard) -> None:
    """N2: each is decided on the newer fleet when another one was faster."""
    worker = await yard.worker()
    replies = await asyncio.gather(*(registered(worker) for _ in range(200)))
    assert {type(reply) for reply in replies} == {Registered}
    assert sum(command.startswith("register-") for command in yard.fleet.commands) == 1
