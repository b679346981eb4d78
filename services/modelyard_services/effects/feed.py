"""The log followed into a fleet: one ordered feed, and who waits for it.

Invariant: the fleet only ever stands at the end of a whole batch when anybody else runs; a log that can't be
read further stops the feed with sequence and reason, and nothing is skipped.
"""

import asyncio
import heapq
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import structlog

from modelyard_events.codec import UndecodableEventError, decode
from modelyard_events.envelope import Recorded
from modelyard_projections.fleet import Fleet, FoldError, Touched
from modelyard_services.effects.log.contract import Log, Stored
from modelyard_services.errors import NotYetError

FOLD_SLICE: Final = 500
"""Events folded before the loop may run others: about 5 ms, below anything a caller would notice."""

OnBatch = Callable[[Sequence[Recorded], list[Touched]], None]

_log = structlog.get_logger(__name__)


def recorded(stored: Stored) -> Recorded:
    """The event behind a body.

    Raises:
        UndecodableEventError: it needs a newer reader.
    """
    return decode(
        stored.body,
        sequence=stored.sequence,
        time_ns=stored.time_ns,
        event_id=stored.event_id,
        batch_end=stored.batch_end,
    )


async def recorded_after(log: Log, after: int) -> AsyncIterator[Recorded]:
    """Every event after that sequence, and then those to come.

    Raises:
        LogFailure: the log can't be read on.
        UndecodableEventError: an event needs a newer reader.
    """
    async for chunk in log.follow(after=after):
        for one in chunk:
            yield recorded(one)


class Feed:
    """Follows `log` into `fleet` until it is cancelled or the log can't be read."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.failure: str | None = None
        self.target = 0
        self.caught_up = False
        self._first_target = 0
        self._listeners: list[OnBatch] = []
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = 0

    def on_batch(self, callback: OnBatch) -> None:
        """Call `callback` after each folded slice of whole batches, with the events and what they touched."""
        self._listeners.append(callback)

    @property
    def lag(self) -> int:
        """Sequences between the fleet and the log's end as it was last seen."""
        return max(0, self.target - self.fleet.sequence)

    async def run(self, log: Log) -> None:
        """Follow `log` from where the fleet stands; returns only with a failure.

        Raises:
            LogError: the log itself is gone or another one.
        """
        self.target = max(self.target, await log.last_sequence())
        if not self.caught_up:
            self._first_target = self.target
            self._look_whether_caught_up()
        async for chunk in log.follow(after=self.fleet.sequence):
            try:
                await self._fold(chunk)
            except (UndecodableEventError, FoldError) as error:
                self.failure = str(error)
                _log.error("feed stopped", sequence=error.sequence, problem=error.problem)
                self._fail_waiting()
                return

    async def passed(self, sequence: int, *, timeout_seconds: float) -> None:
        """Wait until the fleet has folded `sequence`.

        Raises:
            NotYetError: it hasn't within `timeout_seconds`.
        """
        if self.fleet.sequence >= sequence:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ticket += 1
        heapq.heappush(self._waiting, (sequence, self._ticket, future))
        try:
            async with asyncio.timeout(timeout_seconds):
                await future
        except TimeoutError:
            raise NotYetError(
                f"sequence {sequence} isn't folded yet; the read model stands at {self.fleet.sequence}",
                retry_after_seconds=1,
            ) from None

    async def _fold(self, chunk: Sequence[Stored]) -> None:
        start = 0
        while start < len(chunk):
            end = min(start + FOLD_SLICE, len(chunk))
            while end < len(chunk) and not chunk[end - 1].batch_end:
                end += 1
            self._fold_slice(chunk[start:end])
            start = end
            await asyncio.sleep(0)

    def _fold_slice(self, stored: Sequence[Stored]) -> None:
        events = [recorded(one) for one in stored]
        self.fleet.apply_all(events)
        self.target = max(self.target, self.fleet.sequence)
        self._look_whether_caught_up()
        touched = self.fleet.take_touched()
        for listener in self._listeners:
            listener(events, touched)
        self._wake()

    def _look_whether_caught_up(self) -> None:
        """Once for all: a fleet that fell behind later is old, one that was never complete is wrong."""
        self.caught_up = self.caught_up or self.fleet.sequence >= self._first_target

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.fleet.sequence:
            _sequence, _ticket, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)

    def _fail_waiting(self) -> None:
        for _sequence, _ticket, future in self._waiting:
            if not future.done():
                future.set_exception(NotYetError(f"the feed stopped: {self.failure}"))
        self._waiting.clear()
