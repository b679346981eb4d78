"""The projection: the log folded, its rows written, its checkpoint moved, in one transaction per slice.

Invariant: an event is in PostgreSQL entirely or not at all, exactly once, whoever wrote it; what can't be read stops
the projection before its batch, after all that came before it was written.
"""

from collections.abc import Sequence
from contextlib import aclosing

import structlog

from modelyard_services.effects.clock import Clock
from modelyard_services.effects.database import Database
from modelyard_services.effects.log.contract import Log, Stored
from modelyard_services.effects.tracing import span
from modelyard_services.projector.errors import ProjectionStoppedError, RivalDiffersError
from modelyard_services.projector.folding import Folding, UnreadableError
from modelyard_services.projector.joining import slices
from modelyard_services.projector.writing import CheckpointLostError, Writing

_log = structlog.get_logger(__name__)


class Projector:
    """Projects one log into one database."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.target = 0
        self._writing = Writing(database, clock)
        self._folding = Folding("")
        self._met = False
        self._unreadable: UnreadableError | None = None

    @property
    def sequence(self) -> int:
        """All up to here is committed."""
        return self._writing.checkpoint.sequence

    @property
    def lag(self) -> int:
        """Sequences between the rows, or the own fold while it replays, and the log's end as it was last seen."""
        return max(0, self.target - min(self.sequence, self.folded))

    @property
    def folded(self) -> int:
        """How far the own fold is; behind `sequence` while the log is being replayed."""
        return self._folding.sequence

    @property
    def problem(self) -> str | None:
        """Why nothing can be written just now; None when it can."""
        return self._writing.problem

    async def run(self, log: Log) -> None:
        """Project `log` for ever.

        Raises:
            CheckpointError: the database belongs to another log, or to more of this one than there is.
            ProjectionStoppedError: an event can't be read or folded; all before its batch is projected.
            RivalDiffersError: another version of this projector writes the same rows.
            LogFailure: the log can't be followed.
        """
        while True:
            try:
                await self._run(log)
            except UnreadableError as unreadable:
                # The fold may stand inside the batch: fold anew, up to where it begins.
                self._unreadable = unreadable
                _log.error("event can't be read", sequence=unreadable.sequence, problem=unreadable.problem)
            except CheckpointLostError:
                _log.warning("the rows went back; folding anew", sequence=self.sequence)

    async def _run(self, log: Log) -> None:
        self._folding, self._met = Folding(log.log_id), False
        self.target = await log.last_sequence()
        await self._writing.begin(log.log_id, last_sequence=self.target)
        await self._meet()
        async with aclosing(slices(log.follow(after=0))) as following:
            await self._stop_if_unreadable()
            async for one in following:
                self.target = max(self.target, one[-1].sequence)
                await self._take(self._readable(one))
                await self._stop_if_unreadable()

    def _readable(self, events: Sequence[Stored]) -> Sequence[Stored]:
        """Those before the batch that is known to be unreadable."""
        if self._unreadable is None:
            return events
        return [one for one in events if one.sequence < self._unreadable.batch]

    async def _take(self, events: Sequence[Stored]) -> None:
        written = self.sequence
        old = [one for one in events if one.sequence <= written]
        new = [one for one in events if one.sequence > written]
        if old:
            self._folding.replay(old)
            await self._meet()
        if new:
            with span("project") as work:
                work.note(events=len(new), first=new[0].sequence, last=new[-1].sequence)
                one = self._folding.project(new)
                work.link(row.trace for row in one.history.events)
                await self._writing.write(one, self._folding)

    async def _meet(self) -> None:
        """Where the fold reaches the rows, both must have the same hash (I9)."""
        if self.folded != self.sequence:
            return
        own, found = self._folding.checkpoint(), self._writing.checkpoint
        first, self._met = not self._met, True
        if own == found:
            return
        if not first:
            raise RivalDiffersError(own.sequence, own=own.state_hash, found=found.state_hash)
        _log.warning("rows of another version are written anew", sequence=self.sequence)
        await self._writing.rewrite(self._folding)

    async def _stop_if_unreadable(self) -> None:
        bad = self._unreadable
        if bad is not None and self.folded == bad.batch - 1:
            await self._writing.note_stop(bad.sequence, bad.problem)
            raise ProjectionStoppedError(bad.sequence, bad.problem)
