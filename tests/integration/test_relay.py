"""The public lifecycle stream: message n tells of event n of the log, once, whoever relays it and whatever happens."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client

from modelyard_events.subjects import EVENTS_STREAM, LOG_STREAM
from modelyard_projections.cloudevents import CloudEvent, cloud_event
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.log.contract import Log
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.jetstream import open_log
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.projector.errors import ProjectionStoppedError, PublicStreamError
from modelyard_services.projector.public_stream import PublicStream
from modelyard_services.projector.relay import Relay
from tests.support.held_log import HeldLog
from tests.support.histories import decoded
from tests.support.nats_servers import Servers
from tests.support.projections import Writer
from tests.support.public_streams import published, verify_public


@pytest_asyncio.fixture
async def client(nats_r1: Servers) -> AsyncIterator[Client]:
    """A connection to a server with fresh streams."""
    await nats_r1.forget()
    one = await connect(nats_r1.endpoint)
    await declare_streams(one, Layout())
    yield one
    await one.close()


@pytest_asyncio.fixture
async def log(client: Client, nats_r1: Servers) -> AsyncIterator[Log]:
    assert client.is_connected
    async with open_log(nats_r1.endpoint) as one:
        yield one


@contextlib.asynccontextmanager
async def relaying(log: Log, client: Client) -> AsyncIterator[Relay]:
    """A relay at work meanwhile; its failure is the test's."""
    relay = Relay(Clock())
    task = asyncio.create_task(relay.run(log, PublicStream(client)))
    try:
        yield relay
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def run_to_its_end(log: Log, client: Client) -> None:
    async with asyncio.timeout(20):
        await Relay(Clock()).run(log, PublicStream(client))


async def messages(log: Log, first: int, last: int) -> list[CloudEvent]:
    found = [await log.read(sequence) for sequence in range(first, last + 1)]
    return [cloud_event(decoded(one), log_id=log.log_id) for one in found if one is not None]


async def test_every_event_is_told_once_under_its_own_sequence(log: Log, client: Client, nats_r1: Servers) -> None:
    writer = Writer(log, 1)
    await writer.append(300)
    async with relaying(log, client):
        for _ in range(20):
            last = await writer.append(3)
            await published(nats_r1, last)
    await verify_public(nats_r1, log)


async def test_a_relay_that_starts_again_goes_on_where_the_stream_ends(
    log: Log, client: Client, nats_r1: Servers
) -> None:
    writer = Writer(log, 2)
    for _ in range(3):
        last = await writer.append(40)
        async with relaying(log, client):
            await published(nats_r1, last)
    await verify_public(nats_r1, log)


async def test_rival_relays_are_harmless(log: Log, client: Client, nats_r1: Servers) -> None:
    writer = Writer(log, 3)
    other = await connect(nats_r1.endpoint)
    async with relaying(log, client), relaying(log, other):
        last = 0
        for _ in range(60):
            last = await writer.append(10)
        await published(nats_r1, last)
    await other.close()
    await verify_public(nats_r1, log)


@pytest.mark.parametrize("overtaken", [1, 25, 50, 80])
async def test_a_burst_refused_in_the_middle_goes_on_after_what_the_rival_published(
    overtaken: int, log: Log, client: Client, nats_r1: Servers
) -> None:
    """The slice is 50 events; the rival told the first of them, all of them, or more."""
    last = await _events(Writer(log, 4), 80)
    held = HeldLog(log, 50, first=0)
    async with relaying(held, client):
        await held.followed.wait()
        assert await PublicStream(client).publish(await messages(log, 1, overtaken), after=0)
        held.release()
        await published(nats_r1, last)
    await verify_public(nats_r1, log)


async def test_publishing_what_stands_there_already_changes_nothing(log: Log, client: Client) -> None:
    """A lost answer: the same burst, and the same single message, again."""
    await _events(Writer(log, 5), 20)
    stream = PublicStream(client)
    assert await stream.publish(await messages(log, 1, 10), after=0)
    assert not await stream.publish(await messages(log, 1, 10), after=0)
    assert await stream.publish(await messages(log, 11, 11), after=10)
    assert not await stream.publish(await messages(log, 11, 11), after=10)
    assert not await stream.publish(await messages(log, 13, 14), after=12)
    assert (await stream.last()).sequence == 11


async def test_messages_that_retention_took_are_no_reason_to_tell_them_again(
    log: Log, client: Client, nats_r1: Servers
) -> None:
    writer = Writer(log, 6)
    async with relaying(log, client):
        last = await writer.append(30)
        await published(nats_r1, last)
    for keep in (5, None):
        await client.jetstream().purge_stream(EVENTS_STREAM, keep=keep)
        async with relaying(log, client):
            last = await writer.append(5)
            await published(nats_r1, last)
    info = await client.jetstream().stream_info(EVENTS_STREAM)
    assert info.state.first_seq > 1
    assert info.state.last_seq == last


async def test_a_stream_made_anew_is_told_everything_again(log: Log, client: Client, nats_r1: Servers) -> None:
    writer = Writer(log, 7)
    async with relaying(log, client):
        await published(nats_r1, await writer.append(30))
        await nats_r1.forget(EVENTS_STREAM)
        await declare_streams(client, Layout())
        await published(nats_r1, await writer.append(5))
    await verify_public(nats_r1, log)


async def test_a_stream_that_is_gone_stops_the_relay(log: Log, client: Client, nats_r1: Servers) -> None:
    await Writer(log, 8).append(5)
    await nats_r1.forget(EVENTS_STREAM)
    with pytest.raises(PublicStreamError, match="stream not found"):
        await run_to_its_end(log, client)


async def test_a_stream_of_another_log_stops_the_relay(log: Log, client: Client, nats_r1: Servers) -> None:
    writer = Writer(log, 9)
    async with relaying(log, client):
        await published(nats_r1, await writer.append(10))
    await nats_r1.forget(LOG_STREAM)
    await declare_streams(client, Layout())
    async with open_log(nats_r1.endpoint) as another:
        with pytest.raises(PublicStreamError, match=r"ends at \d+, the log at 0: it isn't of this log"):
            await run_to_its_end(another, client)
        await _events(Writer(another, 10), 60)
        with pytest.raises(PublicStreamError, match="it isn't of this log; delete the stream EVENTS"):
            await run_to_its_end(another, client)


async def test_a_message_that_no_relay_wrote_stops_the_relay(log: Log, client: Client, nats_r1: Servers) -> None:
    writer = Writer(log, 11)
    async with relaying(log, client):
        await published(nats_r1, await writer.append(10))
    await client.jetstream().publish("modelyard.events.node.n1.forged", b"{}")
    await _events(writer, 30)
    with pytest.raises(PublicStreamError, match="it isn't of this log"):
        await run_to_its_end(log, client)


async def test_an_event_that_cant_be_read_is_never_told_and_nothing_after_it(
    log: Log, client: Client, nats_r1: Servers
) -> None:
    writer = Writer(log, 12)
    last = await writer.append(10)
    await writer.append_raw(b'{"event":{"type":"node.teleported.v1"}}')
    with pytest.raises(ProjectionStoppedError, match=f"log sequence {last + 1}: unknown tag"):
        await run_to_its_end(log, client)
    await published(nats_r1, last)
    assert (await PublicStream(client).last()).sequence == last


async def test_a_server_that_restarts_interrupts_nothing(nats_alone: Servers) -> None:
    client = await connect(nats_alone.endpoint)
    await declare_streams(client, Layout())
    async with open_log(nats_alone.endpoint) as log:
        writer = Writer(log, 13)
        async with relaying(log, client):
            await writer.append(50)
            nats_alone.nodes[0].kill()
            nats_alone.nodes[0].start()
            last = await writer.append(50)
            await published(nats_alone, last)
        await verify_public(nats_alone, log)
    await client.close()


async def _events(writer: Writer, count: int) -> int:
    last = 0
    while last < count:
        last = await writer.append(1)
    return last
