"""One node's part of the log, for its worker: made by the control plane, read without any right but to read it.

The worker never makes a consumer (the maker chooses where messages go, which would let it write anywhere): it asks the
registrar to, then pulls. Registrar and server may be away at any time; the worker asks again from where it stood.
Invariant: `follow` yields every event of the node after `after`, once, in order, or raises; the consumer's own dense
numbers, carried by each message, prove it.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Final

import msgspec
import nats.errors
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamManager
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from modelyard_events.ids import NodeName
from modelyard_events.subjects import LOG_STREAM, node_subject
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.heed import heed
from modelyard_services.effects.log.contract import Stored
from modelyard_services.effects.nats_access.roles import node_consumer, node_feed_subject
from modelyard_services.errors import ModelyardError, UnavailableError

Offer = Callable[[int], Awaitable[None]]
"""Ask the registrar to `offer_node_log` from after that sequence on."""

PULL_MESSAGES_MAX: Final = 256
PULL_SECONDS: Final = 30.0
HEARTBEAT_SECONDS: Final = 2.0
"""The server says at least this often that it is still there and how far the consumer has come."""

SILENCE_SECONDS_MAX: Final = 3 * HEARTBEAT_SECONDS
"""Two lost heartbeats are bad luck, three are a dead consumer."""

OFFER_SECONDS_MAX: Final = 10.0
"""How long the registrar may take to make an offer: two round trips to JetStream, or an election of its leader."""

OFFER_SECONDS_IDLE: Final = 300.0
"""An offer that nobody pulls from ends by itself."""

RETRY_SECONDS_BASE: Final = 0.1
RETRY_SECONDS_CAP: Final = 5.0

_NANOSECONDS = 1_000_000_000
_V1_TOKENS = 9
_V1_SEQUENCE_INDEX = 5

_PULL = msgspec.json.encode(
    {
        "batch": PULL_MESSAGES_MAX,
        "expires": int(PULL_SECONDS * _NANOSECONDS),
        "idle_heartbeat": int(HEARTBEAT_SECONDS * _NANOSECONDS),
    }
)

_log = structlog.get_logger(__name__)


async def offer_node_log(manager: JetStreamManager, node: NodeName, *, after: int) -> None:
    """Let the worker of `node` pull its events after sequence `after`; replaces what it was offered before."""
    name = node_consumer(node)
    with contextlib.suppress(nats.js.errors.NotFoundError):
        await manager.delete_consumer(LOG_STREAM, name)
    config = ConsumerConfig(
        name=name,
        filter_subject=node_subject(node),
        deliver_policy=DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=after + 1,
        ack_policy=AckPolicy.NONE,
        inactive_threshold=OFFER_SECONDS_IDLE,
        mem_storage=True,
        num_replicas=1,
    )
    await manager.add_consumer(LOG_STREAM, config)


class NodeLog:
    """The log as the worker of `node` sees it. `client` is connected as that worker, with its inbox prefix."""

    def __init__(self, client: Client, node: NodeName, offer: Offer, *, clock: Clock) -> None:
        self._client = client
        self._feed = node_feed_subject(node)
        self._offer = offer
        self._clock = clock

    async def follow(self, *, after: int) -> AsyncIterator[list[Stored]]:
        """Every event of the node after `after`, in order, for ever."""
        position, failures = after, 0
        while True:
            try:
                async with asyncio.timeout(OFFER_SECONDS_MAX):
                    await heed(self._offer(position))
                async with contextlib.aclosing(self._pulled(position)) as events:
                    async for event in events:
                        position, failures = event.sequence, 0
                        yield [event]
            except (nats.errors.Error, ModelyardError, TimeoutError) as error:
                _log.info("node_log.again", after=position, failures=failures, error=repr(error))
            await self._clock.sleep(backoff_seconds(failures, base=RETRY_SECONDS_BASE, cap=RETRY_SECONDS_CAP))
            failures += 1

    async def _pulled(self, position: int) -> AsyncGenerator[Stored, None]:
        """Pull from the consumer that was offered, until it is over.

        Raises:
            UnavailableError: it is gone, or another one took its place.
            nats.errors.TimeoutError: nothing is heard of it.
        """
        offered = _Offered(position)
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox)
        try:
            while True:
                await self._client.publish(self._feed, _PULL, reply=inbox)
                async for event in _answers(subscription, offered):
                    yield event
        finally:
            # Nothing to tell a server that is away; the subscription went with the connection.
            with contextlib.suppress(nats.errors.Error):
                await subscription.unsubscribe()


class _Offered:
    """How far we are in one offered consumer: it numbers its messages densely from 1."""

    def __init__(self, position: int) -> None:
        self._position = position
        self._number = 0

    def event(self, message: Msg) -> Stored:
        """The next event.

        Raises:
            UnavailableError: it isn't the next one.
        """
        sequence, number, time_ns = _places(message.reply)
        if number != self._number + 1 or sequence <= self._position:
            raise UnavailableError(f"message {number} at {sequence} came after {self._number} at {self._position}")
        self._number, self._position = number, sequence
        headers = message.headers or {}
        guard = headers.get("Nats-Expected-Last-Subject-Sequence")
        return Stored(
            sequence=sequence,
            time_ns=time_ns,
            subject=message.subject,
            event_id=headers.get("Nats-Msg-Id", ""),
            body=message.data,
            batch_end="Nats-Batch-Id" not in headers or "Nats-Batch-Commit" in headers,
            guard=None if guard is None else int(guard),
        )

    def heartbeat(self, message: Msg) -> None:
        """The server tells how far it has sent.

        Raises:
            UnavailableError: further than we have heard.
        """
        number = (message.headers or {}).get("Nats-Last-Consumer", "")
        if number != str(self._number):
            raise UnavailableError(f"the server has sent message {number}, we heard {self._number}")


async def _answers(subscription: Subscription, offered: _Offered) -> AsyncIterator[Stored]:
    """The events that answer one pull."""
    wanted = PULL_MESSAGES_MAX
    while wanted:
        message = await heed(subscription.next_msg(timeout=SILENCE_SECONDS_MAX))
        match _status(message):
            case None:
                wanted -= 1
                yield offered.event(message)
            case "100":
                offered.heartbeat(message)
            case "404" | "408":  # nothing (more) within the time of this pull: the consumer is well, pull again
                return
            case status:
                raise UnavailableError(f"the consumer is over: {status}")


def _status(message: Msg) -> str | None:
    return (message.headers or {}).get("Status")


def _places(reply: str) -> tuple[int, int, int]:
    """Log sequence, consumer's number and time from `$JS.ACK.[domain.account.]stream.consumer.deliveries.…`."""
    tokens = reply.split(".")
    first = _V1_SEQUENCE_INDEX if len(tokens) == _V1_TOKENS else _V1_SEQUENCE_INDEX + 2
    return int(tokens[first]), int(tokens[first + 1]), int(tokens[first + 2])
