"""Followers of the real log when connections break, servers restart, and folds are slow."""

import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
import pytest_asyncio
import uvloop
from structlog.testing import capture_logs

from modelyard_services.effects.log.contract import LogReplaced
from modelyard_services.effects.log.jetstream import JetStreamLog, open_log
from modelyard_services.effects.log.line import BUFFER_BYTES_MAX, SILENCE_SECONDS, Line
from modelyard_services.effects.log.parser import Parser
from tests.contract.conftest import declare
from tests.contract.decisions import A, B, event, read_until
from tests.contract.proxy import cutting_proxy
from tests.support.nats_servers import Servers

REPLAYED = 200_000
WINDOW_BYTES_MAX = 32 * 1024 * 1024
"""What a server sends before it waits for an answer to flow control."""


@pytest_asyncio.fixture
async def r1(nats_r1: Servers) -> AsyncIterator[JetStreamLog]:
    await declare(nats_r1)
    async with open_log(nats_r1.endpoint) as log:
        yield log


async def fill(log: JetStreamLog, events: int, *, body: bytes = b'{"type":"node.labels_changed.v1"}') -> None:
    """`events` events on A, in decisions of a thousand or as many as fit."""
    step = min(1_000, 4 * 1024 * 1024 // len(body))
    for start in range(0, events, step):
        await log.append([event(A, f"f{start + i}", start, body) for i in range(min(step, events - start))])


async def test_two_hundred_thousand_events_come_whole_and_in_order(r1: JetStreamLog) -> None:
    await fill(r1, REPLAYED)
    expected = 1
    with capture_logs() as warnings:
        for chunk in await read_until(r1, REPLAYED):
            assert chunk[-1].batch_end
            for stored in chunk:
                assert (stored.sequence, stored.event_id) == (expected, f"f{expected - 1}")
                expected += 1
    assert expected == REPLAYED + 1
    assert warnings == []


async def test_a_connection_that_breaks_again_and_again_loses_nothing(nats_r1: Servers, r1: JetStreamLog) -> None:
    await fill(r1, 5_000)
    async with cutting_proxy(nats_r1.nodes[0].port, bytes_per_connection=60_000) as proxy:
        endpoint = msgspec.structs.replace(nats_r1.endpoint, urls=(f"nats://127.0.0.1:{proxy.port}",))
        log = JetStreamLog(r1.client, endpoint, log_id=r1.log_id)
        chunks = await read_until(log, 5_000)
        assert proxy.connections > 10
    assert [s.sequence for chunk in chunks for s in chunk] == list(range(1, 5_001))
    assert all(chunk[-1].batch_end for chunk in chunks)


async def test_a_filtered_connection_that_breaks_loses_nothing_either(nats_r1: Servers, r1: JetStreamLog) -> None:
    for turn in range(10):
        await r1.append([event((A, B)[i % 2], f"{turn}.{i}", turn and 200 * turn - 1 + i % 2) for i in range(200)])
    async with cutting_proxy(nats_r1.nodes[0].port, bytes_per_connection=30_000) as proxy:
        endpoint = msgspec.structs.replace(nats_r1.endpoint, urls=(f"nats://127.0.0.1:{proxy.port}",))
        log = JetStreamLog(r1.client, endpoint, log_id=r1.log_id)
        chunks = await read_until(log, 2_000, subject=B)
        assert proxy.connections > 3
    assert [s.sequence for chunk in chunks for s in chunk] == list(range(2, 2_001, 2))


async def test_a_follower_outlives_a_crash_and_restart_of_the_server(nats_alone: Servers) -> None:
    await declare(nats_alone)
    async with open_log(nats_alone.endpoint) as log:
        await fill(log, 100)
        following = asyncio.create_task(read_until(log, 201))
        await asyncio.sleep(0.2)
        nats_alone.nodes[0].kill()
        appending = asyncio.create_task(log.append([event(A, "during", 100)]))
        await asyncio.sleep(0.5)
        await asyncio.to_thread(nats_alone.nodes[0].start)
        assert await appending == (101,)
        await log.append([event(A, f"after{i}", 101) for i in range(100)])
        assert [s.sequence for chunk in await following for s in chunk] == list(range(1, 202))


async def test_a_frozen_server_is_noticed_and_what_follows_is_not_missed(nats_alone: Servers) -> None:
    await declare(nats_alone)
    async with open_log(nats_alone.endpoint) as log:
        await fill(log, 10)
        with capture_logs() as warnings:
            following = asyncio.create_task(read_until(log, 20))
            await asyncio.sleep(0.2)
            nats_alone.nodes[0].pause()
            await asyncio.sleep(SILENCE_SECONDS + 0.5)
            nats_alone.nodes[0].resume()
            await log.append([event(A, f"after{i}", 10) for i in range(10)])
            assert [s.sequence for chunk in await following for s in chunk] == list(range(1, 21))
        assert "no heartbeat" in str(warnings)


async def test_a_slow_fold_bounds_what_is_buffered_and_keeps_its_connection(nats_r1: Servers, r1: JetStreamLog) -> None:
    events, body = 4_000, b"x" * 16 * 1024
    await fill(r1, events, body=body)
    line = Line(nats_r1.endpoint, nats_r1.endpoint.addresses()[0], Parser(after=0, filtered=False))
    async with line:
        await line.deliver("LOG", start=1, subject=None)
        await asyncio.sleep(SILENCE_SECONDS + 1)
        assert BUFFER_BYTES_MAX < line._buffered < BUFFER_BYTES_MAX + WINDOW_BYTES_MAX < events * len(body)
        received = 0
        while received < events:
            received += len(await line.take())
        assert received == events


def test_followers_work_on_uvloop_too(nats_r1: Servers) -> None:
    """The processes run on it; its transports are not asyncio's own."""

    async def story() -> None:
        await declare(nats_r1)
        async with open_log(nats_r1.endpoint) as log:
            await fill(log, 5_000)
            async with cutting_proxy(nats_r1.nodes[0].port, bytes_per_connection=400_000) as proxy:
                endpoint = msgspec.structs.replace(nats_r1.endpoint, urls=(f"nats://127.0.0.1:{proxy.port}",))
                chunks = await read_until(JetStreamLog(log.client, endpoint, log_id=log.log_id), 5_000)
            assert [s.sequence for chunk in chunks for s in chunk] == list(range(1, 5_001))

    uvloop.run(story())


async def test_a_log_made_anew_is_not_mistaken_for_the_old_one(nats_r1: Servers, r1: JetStreamLog) -> None:
    """I9: even when it is as long as the old one."""
    await fill(r1, 10)
    await declare(nats_r1)
    async with open_log(nats_r1.endpoint) as anew:
        await fill(anew, 10)
        assert anew.log_id != r1.log_id
    with pytest.raises(LogReplaced):
        await read_until(r1, 11, after=10)


@pytest.fixture
def no_leftovers(nats_r3: Servers) -> Iterator[Servers]:
    yield nats_r3
    nats_r3.revive()


async def test_a_follower_goes_on_with_another_server_of_the_cluster(no_leftovers: Servers) -> None:
    cluster = no_leftovers
    await declare(cluster)
    victim = cluster.nodes[0]
    async with open_log(cluster.endpoint) as log:
        await fill(log, 50)
        one_first = msgspec.structs.replace(cluster.endpoint, urls=(victim.url, *cluster.endpoint.urls))
        follower = JetStreamLog(log.client, one_first, log_id=log.log_id)
        following = asyncio.create_task(read_until(follower, 100))
        await asyncio.sleep(0.3)
        victim.kill()
        await fill_from(log, 50, 100)
        assert [s.sequence for chunk in await following for s in chunk] == list(range(1, 101))


async def fill_from(log: JetStreamLog, start: int, end: int) -> None:
    await log.append([event(A, f"g{i}", start) for i in range(start, end)])
