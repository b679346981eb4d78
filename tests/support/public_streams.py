"""The public stream as its readers see it."""

import asyncio
from contextlib import aclosing

import msgspec
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from modelyard_events.subjects import EVENTS_STREAM
from modelyard_projections.cloudevents import cloud_event
from modelyard_services.effects.log.contract import Log
from modelyard_services.effects.log.endpoint import connect
from tests.support.histories import decoded
from tests.support.nats_servers import Servers

WAIT_SECONDS_MAX = 30.0


class Told(msgspec.Struct, frozen=True):
    """A message of the public stream."""

    sequence: int
    subject: str
    headers: dict[str, str]
    data: bytes


async def told(client: Client, count: int) -> list[Told]:
    """The first `count` messages from sequence 1 on."""
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, deliver_policy=DeliverPolicy.ALL)
    pull = await client.jetstream().pull_subscribe("", stream=EVENTS_STREAM, config=config)
    found: list[Told] = []
    while len(found) < count:
        for message in await pull.fetch(min(500, count - len(found)), timeout=10):
            headers = {key: value for key, value in (message.headers or {}).items() if key.startswith("ce-")}
            found.append(Told(message.metadata.sequence.stream, message.subject, headers, message.data))
    await pull.unsubscribe()
    return found


async def published(servers: Servers, sequence: int) -> None:
    """Wait until the public stream stands at `sequence` or beyond."""
    client = await connect(servers.endpoint)
    try:
        async with asyncio.timeout(WAIT_SECONDS_MAX):
            while (await client.jetstream().stream_info(EVENTS_STREAM)).state.last_seq < sequence:  # noqa: ASYNC110 - on a server
                await asyncio.sleep(0.02)
    finally:
        await client.close()


async def verify_public(servers: Servers, log: Log) -> None:
    """Message n of the public stream is the CloudEvent of event n of the log, and there are no others."""
    last = await log.last_sequence()
    client = await connect(servers.endpoint)
    try:
        messages = await told(client, last)
        info = await client.jetstream().stream_info(EVENTS_STREAM)
    finally:
        await client.close()
    assert info.state.last_seq == last
    async with aclosing(log.follow(after=0)) as following:
        async for chunk in following:
            for one in chunk:
                event = cloud_event(decoded(one), log_id=log.log_id)
                expected = Told(one.sequence, event.subject, dict(event.headers), event.data)
                assert messages[one.sequence - 1] == expected
            if chunk[-1].sequence >= last:
                return
