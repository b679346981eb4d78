"""How far a projection has come, and in which log. Pure.

Invariant: a checkpoint lies on the end of a batch and belongs to one log for ever; work on another log, or past the
log's end, is refused before anything is written.
"""

from typing import Final, Literal

import msgspec

FLEET_PROJECTION: Final = "fleet"
"""The name of the one projection there is: entities and history, in one transaction."""

ProjectionStatus = Literal["running", "stopped"]


class Checkpoint(msgspec.Struct, frozen=True):
    """All up to `sequence` of the log `log_id` is in the rows, whose canonical hash is `state_hash`."""

    log_id: str
    sequence: int
    state_hash: str


class CheckpointError(ValueError):
    """The rows can't be brought up to date from this log; the text says what to do."""

    def __init__(self, checkpoint: Checkpoint, problem: str) -> None:
        self.checkpoint = checkpoint
        super().__init__(problem)


class AnotherLogError(CheckpointError):
    """The rows came from another log."""


class PastTheEndError(CheckpointError):
    """The rows hold more than the log does: it was restored from an older copy, or lost its end."""


def check(checkpoint: Checkpoint, *, log_id: str, last_sequence: int) -> None:
    """Refuse a checkpoint that this log can't continue.

    Raises:
        AnotherLogError: it belongs to another log.
        PastTheEndError: the log ends before it.
    """
    if checkpoint.log_id != log_id:
        raise AnotherLogError(
            checkpoint,
            f"the database was projected from log {checkpoint.log_id}, this is log {log_id}: point the projector at "
            "the log it belongs to, or at an empty database",
        )
    if checkpoint.sequence > last_sequence:
        raise PastTheEndError(
            checkpoint,
            f"the database stands at sequence {checkpoint.sequence}, the log ends at {last_sequence}: the log lost "
            "events; restore it from a newer copy, or point the projector at an empty database to give them up",
        )
