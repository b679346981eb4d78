"""The projector's hold on the database: slices in, one transaction each, against the checkpoint of any rival.

Invariant: the checkpoint held here is one that the database had, with rows of exactly that state; a slice is written
from there or not at all.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

import structlog

from modelyard_projections.checkpoint import Checkpoint, check
from modelyard_projections.writes import (
    advance,
    begin_checkpoint,
    note_stop,
    read_checkpoint,
    rewrite_entities,
    write_changes,
    write_history,
)
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.database import Database
from modelyard_services.errors import UnavailableError
from modelyard_services.projector.errors import RivalDiffersError
from modelyard_services.projector.folding import Folding, Slice

RIVAL_SILENT_SECONDS: Final = 2.0
"""How long another projector that stands within our slice may be still before we take its place."""

RIVAL_PAUSE_SECONDS: Final = 0.02
"""Between looks at its checkpoint: a transaction or two."""

RETRY_BASE_SECONDS: Final = 0.05
RETRY_CAP_SECONDS: Final = 5.0
"""Between tries of a transaction while PostgreSQL is away."""

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class CheckpointLostError(Exception):
    """The rows went back, or away, under our hands: begin anew from what is there."""


class Writing:
    """Writes slices. `problem` says why it can't just now, None when it can."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.problem: str | None = None
        self.checkpoint = Checkpoint("", 0, "")
        self._database = database
        self._clock = clock

    async def begin(self, log_id: str, *, last_sequence: int) -> None:
        """Bring the schema up to date and take the checkpoint there is; make the first where there is none.

        Raises:
            CheckpointError: this log can't continue it.
        """
        found = await self._patiently(lambda: self._begin(log_id))
        check(found, log_id=log_id, last_sequence=last_sequence)
        self.checkpoint = found

    async def write(self, one: Slice, folding: Folding) -> None:
        """Write `one`, which leads from the checkpoint to where `folding` stands, unless a rival wrote it.

        Afterwards the checkpoint is at the slice's end or beyond.

        Raises:
            RivalDiffersError: a rival of another version wrote it.
            CheckpointLostError: the database went back.
        """
        if not await self._patiently(lambda: self._commit(one)):
            await self._yield(one, folding)

    async def rewrite(self, folding: Folding) -> None:
        """Replace all entities' rows by those of the fold, which stands at the checkpoint's sequence.

        Raises:
            CheckpointLostError: a rival moved on meanwhile.
        """
        after = folding.checkpoint()
        if not await self._patiently(lambda: self._replace(self.checkpoint, Slice.empty(after), folding)):
            raise CheckpointLostError

    async def note_stop(self, sequence: int, problem: str) -> None:
        """Leave word in the database itself."""

        async def attempt() -> None:
            async with self._database.transaction() as connection:
                await note_stop(connection, sequence=sequence, problem=problem)

        await self._patiently(attempt)

    async def _begin(self, log_id: str) -> Checkpoint:
        await self._database.migrate()
        empty = Folding(log_id)
        async with self._database.transaction() as connection:
            await begin_checkpoint(connection, empty.checkpoint(), empty.all_rows())
            found = await read_checkpoint(connection)
        if found is None:
            raise CheckpointLostError
        return found

    async def _commit(self, one: Slice) -> bool:
        async with self._database.transaction() as connection:
            if not await advance(connection, before=self.checkpoint, after=one.after):
                return False
            await write_changes(connection, one.changes)
            await write_history(connection, one.history)
        self.checkpoint = one.after
        return True

    async def _replace(self, before: Checkpoint, one: Slice, folding: Folding) -> bool:
        async with self._database.transaction() as connection:
            if not await advance(connection, before=before, after=one.after):
                return False
            await rewrite_entities(connection, folding.all_rows())
            await write_history(connection, one.history.after(before.sequence))
        self.checkpoint = one.after
        return True

    async def _yield(self, one: Slice, folding: Folding) -> None:
        """A rival was faster. What it wrote beyond our slice we only fold; if it stops within it, we take over.

        A slice says what changed since *our* checkpoint: from where a rival left off it could miss what the rival
        changed and our fold changed back. So taking over means writing every row.
        """
        seen, seen_at = self.checkpoint, self._clock.monotonic_ns()
        while True:
            found = await self._patiently(self._look)
            self._judge(found, one)
            if found.sequence >= one.after.sequence:
                self.checkpoint = found
                return
            now = self._clock.monotonic_ns()
            if found != seen:
                seen, seen_at = found, now
            elif now - seen_at > RIVAL_SILENT_SECONDS * 1e9:
                _log.warning("taking over from a silent rival", sequence=found.sequence)
                if await self._patiently(partial(self._replace, found, one, folding)):
                    return
            await self._clock.sleep(RIVAL_PAUSE_SECONDS)

    def _judge(self, found: Checkpoint, one: Slice) -> None:
        check(found, log_id=one.after.log_id, last_sequence=max(found.sequence, one.after.sequence))
        if found.sequence < self.checkpoint.sequence:
            raise CheckpointLostError
        for own in (self.checkpoint, one.after):
            if found.sequence == own.sequence and found.state_hash != own.state_hash:
                raise RivalDiffersError(own.sequence, own=own.state_hash, found=found.state_hash)

    async def _look(self) -> Checkpoint:
        async with self._database.transaction() as connection:
            found = await read_checkpoint(connection)
        if found is None:
            raise CheckpointLostError
        return found

    async def _patiently(self, attempt: Callable[[], Awaitable[T]]) -> T:
        tries = 0
        while True:
            try:
                done = await attempt()
            except UnavailableError as away:
                self.problem = away.detail
                _log.warning("postgresql is away", problem=away.detail, tries=tries)
                await self._clock.sleep(backoff_seconds(tries, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
                tries += 1
            else:
                self.problem = None
                return done
