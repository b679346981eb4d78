"""The projector's own fold: from stored events to the rows that they change and the checkpoint after them.

Invariant: a slice is made of events that were all read and folded; the first that can't be is told with its sequence
and with where its batch begins, and nothing of that batch is in any slice.
"""

from collections.abc import Sequence
from typing import Self

import msgspec

from modelyard_events.codec import UndecodableEventError
from modelyard_projections.checkpoint import Checkpoint
from modelyard_projections.fleet import Fleet, FoldError
from modelyard_projections.hashing import Changes, StateHash
from modelyard_projections.history import History
from modelyard_projections.rows import entities_of
from modelyard_services.effects.feed import recorded
from modelyard_services.effects.log.contract import Stored


class Slice(msgspec.Struct, frozen=True):
    """What some events do to the rows, and where the rows stand then."""

    after: Checkpoint
    changes: Changes
    history: History

    @classmethod
    def empty(cls, after: Checkpoint) -> Self:
        """Nothing, at a place where the rows stand already."""
        return cls(after, Changes(), History())


class UnreadableError(Exception):
    """Event `sequence` can't be read or folded; its batch begins at `batch`. The fold is spoilt: begin anew."""

    def __init__(self, sequence: int, batch: int, problem: str) -> None:
        self.sequence = sequence
        self.batch = batch
        self.problem = problem
        super().__init__(problem)


class Folding:
    """A fleet with its canonical hash, brought forward by slices of whole batches of the log `log_id`."""

    def __init__(self, log_id: str) -> None:
        self.fleet = Fleet()
        self._log_id = log_id
        self._hash = StateHash()
        self._hashed = False

    @property
    def sequence(self) -> int:
        return self.fleet.sequence

    def checkpoint(self) -> Checkpoint:
        """Where the fold stands. The first call hashes everything, later ones what changed since."""
        self._bring_hash_forward()
        return Checkpoint(self._log_id, self.sequence, self._hash.text)

    def replay(self, events: Sequence[Stored]) -> None:
        """Fold events whose rows are written already.

        Raises:
            UnreadableError: one can't be read or folded.
        """
        self._fold(events, None)

    def project(self, events: Sequence[Stored]) -> Slice:
        """Fold events whose rows are to be written, given that `checkpoint` was taken before them.

        Raises:
            UnreadableError: one can't be read or folded.
        """
        history = History()
        self._fold(events, history)
        changes = self._bring_hash_forward()
        return Slice(self.checkpoint(), changes, history)

    def all_rows(self) -> Changes:
        """Every row of the fleet."""
        return StateHash().update(self.fleet, entities_of(self.fleet))

    def _bring_hash_forward(self) -> Changes:
        touched = self.fleet.take_touched()
        whole, self._hashed = not self._hashed, True
        return self._hash.update(self.fleet, entities_of(self.fleet) if whole else touched)

    def _fold(self, events: Sequence[Stored], history: History | None) -> None:
        batch = events[0].sequence
        for one in events:
            try:
                event = recorded(one)
                if history is not None:
                    history.add(event, one.body, self.fleet)
                self.fleet.apply(event)
            except (UndecodableEventError, FoldError) as error:
                raise UnreadableError(one.sequence, batch, str(error)) from error
            if one.batch_end:
                batch = one.sequence + 1
