"""States of the fleet as they were, folded anew from the log (rule H3).

Invariant: a past state lies on the end of a batch, since nobody ever saw one in the middle of it: a sequence inside a
batch gives the whole batch, a time only batches that were whole by then. The living fleet has no part in it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Final

import structlog

from modelyard_events.codec import UndecodableEventError
from modelyard_events.envelope import instant
from modelyard_projections.fleet import Fleet, FoldError
from modelyard_projections.snapshot import decode_fleet, encode_fleet
from modelyard_services.effects.feed import recorded
from modelyard_services.effects.log.contract import Log, Stored
from modelyard_services.errors import InvalidRequestError, NotYetError, OverloadedError, UnavailableError

REPLAYS_WAITING_MAX: Final = 8
"""Questions about the past at a time: each may read the whole log, one after another."""

REPLAY_SLICE: Final = 100
"""Events folded before others may run: about 1 ms, for requests are routed by the same process."""

REPLAY_SECONDS_MAX: Final = 60.0
"""One replay: what it came to is kept, so that asking again goes on from there."""

SNAPSHOT_EVENTS: Final = 20_000
"""Between two snapshots that a replay leaves behind: 0.2 s of folding for whoever asks for a point between them."""

SNAPSHOTS_BYTES_MAX: Final = 256 * 1024 * 1024
"""All snapshots in memory; the ones asked for longest ago go first."""

_log = structlog.get_logger(__name__)


class Past:
    """Past states of one log, and snapshots of some of them to begin at."""

    def __init__(self) -> None:
        self._snapshots: dict[int, tuple[int, bytes]] = {}
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def at_sequence(self, log: Log, sequence: int) -> Fleet:
        """The fleet with all up to the batch of `sequence`.

        Raises:
            InvalidRequestError: the log ends before it.
            NotYetError: it is a long way, and not all of it is done.
            OverloadedError: too many ask already.
            UnavailableError: the log can't be read.
        """
        last = await log.last_sequence()
        if sequence > last:
            raise InvalidRequestError(f"the log ends at sequence {last}", field="at", value=sequence)
        return await self._replay(
            log,
            last,
            begin=lambda point, _time_ns: point <= sequence,
            goes_on=lambda fleet, _: fleet.sequence < sequence,
        )

    async def at_time(self, log: Log, time_ns: int, *, now_ns: int) -> Fleet:
        """The fleet with all that the log had stored by `time_ns`, Unix time in nanoseconds.

        Raises:
            InvalidRequestError: that is still to come.
            NotYetError: it is a long way, and not all of it is done.
            OverloadedError: too many ask already.
            UnavailableError: the log can't be read.
        """
        if time_ns > now_ns:
            raise InvalidRequestError("that is still to come", field="at", value=instant(time_ns).isoformat())
        last = await log.last_sequence()
        return await self._replay(
            log,
            last,
            begin=lambda _point, stored_ns: stored_ns <= time_ns,
            goes_on=lambda _, end: end.time_ns <= time_ns,
        )

    async def _replay(
        self, log: Log, last: int, *, begin: Callable[[int, int], bool], goes_on: Callable[[Fleet, Stored], bool]
    ) -> Fleet:
        """Batch by batch while `goes_on(fleet, end of the next batch)`, from the newest snapshot that `begin` takes."""
        if self._waiting >= REPLAYS_WAITING_MAX:
            raise OverloadedError(
                f"{REPLAYS_WAITING_MAX} questions about the past wait for their turn", retry_after_seconds=5
            )
        self._waiting += 1
        try:
            async with self._turn:
                fleet = self._nearest(begin)
                try:
                    async with asyncio.timeout(REPLAY_SECONDS_MAX):
                        await self._fold(log, last, fleet, goes_on)
                except TimeoutError:
                    self._keep(fleet)
                    told = f"the log was folded up to sequence {fleet.sequence} so far; asking again goes on from there"
                    raise NotYetError(told, retry_after_seconds=1) from None
                self._keep(fleet)
                return fleet
        finally:
            self._waiting -= 1

    async def _fold(self, log: Log, last: int, fleet: Fleet, goes_on: Callable[[Fleet, Stored], bool]) -> None:
        kept, folded = fleet.sequence, 0
        async for batch in _batches(log, after=fleet.sequence, last=last):
            if not goes_on(fleet, batch[-1]):
                return
            try:
                fleet.apply_all([recorded(one) for one in batch])
            except (UndecodableEventError, FoldError) as error:
                # This process's own feed stopped there too, and says so.
                raise UnavailableError(f"the log can't be read past sequence {fleet.sequence}: {error}") from error
            if fleet.sequence - kept >= SNAPSHOT_EVENTS:
                self._keep(fleet)
                kept = fleet.sequence
            folded += len(batch)
            if folded >= REPLAY_SLICE:
                await asyncio.sleep(0)
                folded = 0

    def _nearest(self, begin: Callable[[int, int], bool]) -> Fleet:
        """The newest state kept that isn't too new; the empty one before the log began."""
        usable = [point for point, (time_ns, _body) in self._snapshots.items() if begin(point, time_ns)]
        if not usable:
            return Fleet()
        newest = max(usable)
        self._snapshots[newest] = self._snapshots.pop(newest)
        return decode_fleet(self._snapshots[newest][1])

    def _keep(self, fleet: Fleet) -> None:
        if fleet.sequence in self._snapshots:
            return
        fleet.take_touched()
        self._snapshots[fleet.sequence] = (fleet.time_ns, encode_fleet(fleet))
        while len(self._snapshots) > 1 and self._bytes() > SNAPSHOTS_BYTES_MAX:
            oldest = next(iter(self._snapshots))
            del self._snapshots[oldest]
            _log.debug("snapshot given up", sequence=oldest)

    def _bytes(self) -> int:
        return sum(len(body) for _time_ns, body in self._snapshots.values())


async def _batches(log: Log, *, after: int, last: int) -> AsyncIterator[list[Stored]]:
    """The batches up to sequence `last`, each whole."""
    if after >= last:
        return
    batch: list[Stored] = []
    async with aclosing(log.follow(after=after)) as chunks:
        async for chunk in chunks:
            for stored in chunk:
                batch.append(stored)
                if stored.batch_end:
                    yield batch
                    batch = []
            if chunk and chunk[-1].sequence >= last:
                return
