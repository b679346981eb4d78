"""What a worker answers when it is asked directly, over a real server and with real processes."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import nats
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg

from modelyard_events.ids import IncarnationId, NodeName, ReplicaId
from modelyard_events.requests import LOGS, PING, RENEW, USED, LogsReply, LogsRequest
from modelyard_events.subjects import worker_subject
from modelyard_services.api.logs import followed
from modelyard_services.effects.bus import NatsBus
from modelyard_services.worker.agent.answers import FOLLOWERS_MAX, Answers
from modelyard_services.worker.processes import Processes
from tests.support.backends import Told, echo, request, supervised
from tests.support.nats_servers import Servers

N1 = NodeName("n1")
LIFE = IncarnationId("i1")
R1 = ReplicaId("r1")
LEASE_SECONDS = 1.0
FOLLOW = LogsRequest(key="echo#0", follow=True)


class Asked:
    """One worker's answers, and a client that asks."""

    def __init__(self, answers: Answers, client: Client) -> None:
        self.answers = answers
        self.bus = NatsBus(client)
        self._client = client

    async def ask(self, verb: str, body: bytes, *, seconds: float = 5.0) -> bytes:
        return (await self._client.request(worker_subject(N1, verb), body, timeout=seconds)).data

    async def tell(self, verb: str, body: bytes) -> None:
        """Say it, and wait until it was heard: a worker takes what it is told in order."""
        await self._client.publish(worker_subject(N1, verb), body)
        await self.ask(PING, LIFE.encode())

    async def follow(self, lease: str) -> AsyncGenerator[LogsReply, None]:
        """What comes until the worker says that it was all."""
        async with contextlib.aclosing(self._replies(msgspec.structs.replace(FOLLOW, lease=lease))) as replies:
            async for reply in replies:
                yield reply

    async def lines(self, wanted: LogsRequest) -> list[str]:
        async with contextlib.aclosing(self._replies(wanted)) as replies:
            return [line.text async for reply in replies for line in reply.lines]

    async def _replies(self, wanted: LogsRequest) -> AsyncGenerator[LogsReply, None]:
        inbox = self._client.new_inbox()
        answers = await self._client.subscribe(inbox)
        await self._client.publish(worker_subject(N1, LOGS), msgspec.json.encode(wanted), reply=inbox)
        try:
            while True:
                message = await answers.next_msg(timeout=10)
                reply = msgspec.json.decode(message.data, type=LogsReply)
                yield reply
                if reply.end:
                    return
        finally:
            await answers.unsubscribe()


@pytest.fixture
async def processes(tmp_path: Path) -> AsyncIterator[Processes]:
    async with supervised(tmp_path, Told()) as processes:
        await processes.start(request("r1", echo()))
        yield processes


@pytest.fixture
async def asked(nats_r1: Servers, processes: Processes) -> AsyncIterator[Asked]:
    worker, asker = await nats.connect(nats_r1.url), await nats.connect(nats_r1.url)
    answers = Answers(N1, LIFE, processes, lease_seconds=LEASE_SECONDS)
    await answers.listen(worker)
    await worker.flush()
    try:
        yield Asked(answers, asker)
    finally:
        await answers.close()
        await worker.close()
        await asker.close()


async def test_a_ping_is_answered_by_the_incarnation_that_is_meant_alone(asked: Asked) -> None:
    """N3: a rival of the same name hears the question too."""
    assert await asked.ask(PING, LIFE.encode()) == LIFE.encode()
    with pytest.raises(nats.errors.TimeoutError):
        await asked.ask(PING, b"i2", seconds=0.5)


async def test_last_use_is_taken_over_and_never_goes_back(asked: Asked) -> None:
    """T2: routers tell it each for themselves; what doesn't run here is nobody's, and nonsense changes nothing."""
    for told in (b'{"r1": 7, "other": 9}', b'{"r1": 5}', b"nonsense"):
        await asked.tell(USED, told)
    assert asked.answers.last_used_ns == {R1: 7}


async def test_the_last_lines_come_with_an_end(asked: Asked) -> None:
    """W7: also of what never ran."""
    assert await asked.lines(LogsRequest(key="nothing#0")) == []
    assert isinstance(await asked.lines(LogsRequest(key="echo", lines=5)), list)


async def test_who_stops_listening_is_not_followed_for(asked: Asked) -> None:
    """W7: followers that left fill no place, though their process runs on."""
    left = [asyncio.create_task(_all_of(asked, f"left-{number}")) for number in range(FOLLOWERS_MAX)]
    for follower in left:
        await asyncio.wait_for(follower, 10)
    assert (await asyncio.wait_for(_all_of(asked, "next"), 10))[-1].end


async def test_who_renews_its_lease_is_followed_for_until_it_stops(asked: Asked) -> None:
    """W7."""
    follower = asyncio.create_task(_all_of(asked, "stays"))
    for _ in range(12):
        await asyncio.sleep(LEASE_SECONDS / 4)
        await asked.tell(RENEW, b"stays")
        await asked.tell(RENEW, b"unknown")
    assert not follower.done(), "three leases long it was renewed"
    assert (await asyncio.wait_for(follower, 10))[-1].end


async def test_an_asker_beyond_the_limit_is_not_followed_for(asked: Asked) -> None:
    """W7: each follower polls files."""
    followers = [asyncio.create_task(_all_of(asked, f"f-{number}")) for number in range(FOLLOWERS_MAX)]
    await asked.tell(RENEW, b"none")
    refused = asyncio.create_task(_all_of(asked, "one too many"))
    await asyncio.gather(*followers)
    assert not refused.done()
    refused.cancel()
    await asyncio.gather(refused, return_exceptions=True)


async def test_a_client_that_follows_and_vanishes_leaves_nothing_behind(asked: Asked) -> None:
    """W7: no task, no subscription, neither in the API nor in the worker; while it reads, it is followed for."""
    inboxes: asyncio.Queue[str] = asyncio.Queue()
    spy = await asked.bus.client.subscribe(worker_subject(N1, LOGS), cb=_reply_to(inboxes))
    await asked.ask(PING, LIFE.encode())  # the client's own task for answers
    before = asyncio.all_tasks()
    client = asyncio.create_task(_read(followed(asked.bus, [N1], FOLLOW, renew_seconds=LEASE_SECONDS / 4)))
    inbox = await asyncio.wait_for(inboxes.get(), 5)
    await asyncio.wait({client}, timeout=3 * LEASE_SECONDS)
    assert not client.done(), "three leases long it was followed for"
    client.cancel()
    await asyncio.wait({client})
    with pytest.raises(nats.errors.NoRespondersError):
        await asked.bus.client.request(inbox, b"", timeout=5)
    async with asyncio.timeout(10):
        while asyncio.all_tasks() - before:  # noqa: ASYNC110 - the worker's follower ends with its lease
            await asyncio.sleep(0.05)
    await spy.unsubscribe()


def _reply_to(inboxes: asyncio.Queue[str]) -> Callable[[Msg], Awaitable[None]]:
    async def hear(message: Msg) -> None:
        inboxes.put_nowait(message.reply)

    return hear


async def _read(lines: AsyncGenerator[bytes, None]) -> None:
    async with contextlib.aclosing(lines):
        async for _ in lines:
            pass


async def _all_of(asked: Asked, lease: str) -> list[LogsReply]:
    return [reply async for reply in asked.follow(lease)]
