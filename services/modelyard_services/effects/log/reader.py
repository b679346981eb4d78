"""The log followed for ever: connection after connection, one unbroken sequence of events.

Invariant: each event after `after` is handed out exactly once, in order, and unfiltered only in whole batches.
However a connection ends (server gone, heartbeat missed, hole seen), the next one starts at the last event + 1.

What a follower must be allowed: publish `$JS.API.STREAM.INFO.<stream>`, `$JS.API.CONSUMER.CREATE.<stream>.*` (with
its own subject appended if that is all it may follow) and `$JS.FC.<stream>.>`; subscribe `<inbox prefix>.>`.
"""

import asyncio
from collections.abc import AsyncGenerator
from itertools import count
from secrets import randbelow
from typing import Final

import structlog

from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.effects.log.api import STREAM_NOT_FOUND, StreamInfo
from modelyard_services.effects.log.contract import DECISION_MESSAGES_MAX, LogGap, LogReplaced, Stored
from modelyard_services.effects.log.endpoint import NatsEndpoint
from modelyard_services.effects.log.line import Line, LineLost
from modelyard_services.effects.log.parser import Parser

DOUBT_SECONDS: Final = 12.0
"""How long a cluster must keep saying that the log ends too early before we believe it: a leader that was cut off
says so too, until it notices (10 s)."""

RETRY_BASE_SECONDS: Final = 0.05
RETRY_CAP_SECONDS: Final = 2.0
"""Between connections: at once after a restart, gentle in an outage."""

_log = structlog.get_logger(__name__)


class Reader:
    """Follows one log."""

    def __init__(self, endpoint: NatsEndpoint, *, stream: str, log_id: str, after: int, subject: str | None) -> None:
        self._endpoint = endpoint
        self._stream = stream
        self._log_id = log_id
        self._subject = subject
        self._position = after
        self._tail: list[Stored] = []
        self._failures = 0
        self._doubted_since: float | None = None

    async def chunks(self) -> AsyncGenerator[list[Stored], None]:
        """The events, for ever.

        Raises:
            LogReplaced: another log answers, or this one ends before where we stand.
            LogGap: the next event is gone.
        """
        addresses = self._endpoint.addresses()
        for turn in count(randbelow(len(addresses))):
            parser = Parser(after=self._position, filtered=self._subject is not None)
            try:
                async with Line(self._endpoint, addresses[turn % len(addresses)], parser) as line:
                    self._verify(await line.info(self._stream))
                    await line.deliver(self._stream, start=self._position + 1, subject=self._subject)
                    while True:
                        if chunk := self._whole(await line.take()):
                            yield chunk
            except LineLost as lost:
                await self._pause(lost)

    def _whole(self, events: list[Stored]) -> list[Stored]:
        """What may be handed out: up to the last batch end; the rest waits for its own."""
        self._position = events[-1].sequence
        self._failures = 0
        if self._subject is not None:
            return events
        if self._tail:
            events = self._tail + events
            self._tail = []
        end = len(events)
        while end and not events[end - 1].batch_end:
            end -= 1
        if end == len(events):
            return events
        self._tail = events[end:]
        if len(self._tail) > DECISION_MESSAGES_MAX:
            raise LogGap(f"the batch from sequence {self._tail[0].sequence} on has no end")
        return events[:end]

    def _verify(self, info: StreamInfo) -> None:
        if info.error is not None and info.error.err_code != STREAM_NOT_FOUND:
            raise LineLost(f"stream {self._stream}: {info.error.description}")
        if info.error is None and info.log_id != self._log_id:
            raise LogReplaced(f"the log is {info.log_id} now, was {self._log_id}")
        if info.error is not None:
            self._doubt(f"stream {self._stream} is gone", replicas=0)
        elif info.state.last_seq < self._position:
            self._doubt(f"the log ends at {info.state.last_seq}, before {self._position}", replicas=info.replicas)
        self._doubted_since = None
        if info.state.first_seq > self._position + 1:
            raise LogGap(f"the log begins at {info.state.first_seq}; {self._position + 1} is gone")

    def _doubt(self, problem: str, *, replicas: int) -> None:
        now = asyncio.get_running_loop().time()
        self._doubted_since = self._doubted_since or now
        if replicas == 1 or now - self._doubted_since > DOUBT_SECONDS:
            raise LogReplaced(problem)
        raise LineLost(problem)

    async def _pause(self, lost: LineLost) -> None:
        _log.warning("follower resumes", stream=self._stream, after=self._position, problem=str(lost))
        await asyncio.sleep(backoff_seconds(self._failures, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
        self._failures += 1
