"""Messages that are no history: telemetry, questions with an answer, and the cells that leases are written in.

Invariant: nothing here is relied on for truth; a message may be lost, a question may go unanswered, a lease lapse.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Protocol

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy

from modelyard_events.subjects import TELEMETRY_STREAM, TELEMETRY_SUBJECTS
from modelyard_services.effects.heed import heed
from modelyard_services.effects.lease.cell import Cell, JetStreamCell, MemoryCell
from modelyard_services.effects.tracing import traceparent
from modelyard_services.errors import UnavailableError

Hear = Callable[[str, bytes], None]
Answer = Callable[[str, bytes], Awaitable[bytes]]

LAST_READINGS_MAX = 10_000
"""Telemetry messages read at start: one per node and router; twice the largest fleet we plan for."""


ANSWERS_MAX = 10_000
"""Answers to one question that may wait for us; a log follower that reads slower than that loses lines, not memory."""

NO_RESPONDERS = "503"
TRACE_HEADER = "traceparent"


class Bus(Protocol):
    """Publish, listen, ask and answer."""

    @property
    def connected(self) -> bool:
        """Whether messages get through now."""

    async def publish(self, subject: str, body: bytes) -> None:
        """Send once; UnavailableError when the bus is away."""

    async def listen(self, pattern: str, hear: Hear) -> None:
        """Call `hear(subject, body)` for every message on `pattern` from now on."""

    async def ask(self, subject: str, body: bytes, *, timeout_seconds: float) -> bytes | None:
        """The answer, None when nobody answered in time."""

    async def answer(self, pattern: str, answer: Answer) -> None:
        """Answer questions on `pattern`."""

    def ask_many(
        self, subject: str, body: bytes, *, first_seconds: float, silence_seconds: float | None
    ) -> AsyncGenerator[bytes, None]:
        """Answers to one question until they stop: none within `first_seconds`, or no more for `silence_seconds`."""

    def cell(self, subject: str) -> Cell:
        """The cell of the lease on `subject`."""


class NatsBus:
    """The bus over NATS core."""

    def __init__(self, client: Client) -> None:
        self.client = client

    @property
    def connected(self) -> bool:
        return self.client.is_connected

    async def publish(self, subject: str, body: bytes) -> None:
        try:
            await self.client.publish(subject, body)
        except nats.errors.Error as error:
            raise UnavailableError(f"NATS is away: {error}") from error

    async def listen(self, pattern: str, hear: Hear) -> None:
        async def on_message(message: Msg) -> None:
            hear(message.subject, message.data)

        await self.client.subscribe(pattern, cb=on_message)

    async def ask(self, subject: str, body: bytes, *, timeout_seconds: float) -> bytes | None:
        try:
            trace = traceparent()
            headers = {TRACE_HEADER: trace} if trace else None
            request = self.client.request(subject, body, timeout=timeout_seconds, headers=headers)
            reply = await heed(request)
        except (nats.errors.TimeoutError, nats.errors.NoRespondersError):
            return None
        except nats.errors.Error as error:
            raise UnavailableError(f"NATS is away: {error}") from error
        return reply.data

    async def answer(self, pattern: str, answer: Answer) -> None:
        async def on_message(message: Msg) -> None:
            await message.respond(await answer(message.subject, message.data))

        await self.client.subscribe(pattern, cb=on_message)

    async def ask_many(
        self, subject: str, body: bytes, *, first_seconds: float, silence_seconds: float | None
    ) -> AsyncGenerator[bytes, None]:
        inbox = self.client.new_inbox()
        answers = await self.client.subscribe(inbox, pending_msgs_limit=ANSWERS_MAX)
        try:
            await self.client.publish(subject, body, reply=inbox)
            patience: float | None = first_seconds
            while True:
                try:
                    message = await heed(answers.next_msg(timeout=patience))
                except nats.errors.TimeoutError:
                    return
                if message.headers and message.headers.get("Status") == NO_RESPONDERS:
                    return
                yield message.data
                patience = silence_seconds
        finally:
            await answers.unsubscribe()

    def cell(self, subject: str) -> Cell:
        return JetStreamCell(self.client, subject)

    async def last_readings(self, hear: Hear) -> None:
        """Call `hear` with the last telemetry of each subject, so that a new process needn't wait for heartbeats."""
        stream = self.client.jetstream()
        config = ConsumerConfig(
            deliver_policy=DeliverPolicy.LAST_PER_SUBJECT, ack_policy=AckPolicy.NONE, inactive_threshold=10
        )
        consumer = await stream.pull_subscribe(TELEMETRY_SUBJECTS, stream=TELEMETRY_STREAM, config=config)
        pending = (await consumer.consumer_info()).num_pending or 0
        if pending:
            for message in await consumer.fetch(min(pending, LAST_READINGS_MAX), timeout=2):
                hear(message.subject, message.data)
        await consumer.unsubscribe()


class MemoryBus:
    """The bus within one process, for tests of what stands on it."""

    connected = True

    def __init__(self) -> None:
        self._listeners: list[tuple[str, Hear]] = []
        self._answers: list[tuple[str, Answer]] = []
        self._cells: dict[str, MemoryCell] = {}

    async def publish(self, subject: str, body: bytes) -> None:
        for pattern, hear in self._listeners:
            if _matches(pattern, subject):
                hear(subject, body)

    async def listen(self, pattern: str, hear: Hear) -> None:
        self._listeners.append((pattern, hear))

    async def ask(self, subject: str, body: bytes, *, timeout_seconds: float) -> bytes | None:
        del timeout_seconds  # nobody is slow here
        for pattern, answer in self._answers:
            if _matches(pattern, subject):
                return await answer(subject, body)
        return None

    async def answer(self, pattern: str, answer: Answer) -> None:
        self._answers.append((pattern, answer))

    async def ask_many(
        self, subject: str, body: bytes, *, first_seconds: float, silence_seconds: float | None
    ) -> AsyncGenerator[bytes, None]:
        del silence_seconds  # nobody is slow here
        answered = await self.ask(subject, body, timeout_seconds=first_seconds)
        if answered is not None:
            yield answered

    def cell(self, subject: str) -> Cell:
        return self._cells.setdefault(subject, MemoryCell())


def _matches(pattern: str, subject: str) -> bool:
    wanted, given = pattern.split("."), subject.split(".")
    return len(wanted) == len(given) and all(want in {"*", have} for want, have in zip(wanted, given, strict=True))
