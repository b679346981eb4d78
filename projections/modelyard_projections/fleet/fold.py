"""The fleet: `apply` events in log order, ask for what is.

Invariant: sequences only grow; what an event refers to exists, else the log contradicts itself and the reader
stops there.
"""

from collections.abc import Iterable
from typing import Final

from modelyard_events.codec import subject_of, tag_of
from modelyard_events.envelope import Recorded
from modelyard_projections.fleet.evolve import evolve
from modelyard_projections.fleet.picture import CommandRecord, FleetState

COMMANDS_MAX: Final = 4_096
"""Plain commands remembered: a resend arrives within seconds, at most some thousand commands later."""

IDEMPOTENT_SEQUENCES: Final = 1_000_000
"""How long an idempotency key holds, in sequences (DESIGN 6)."""


class FoldError(ValueError):
    """The log contradicts itself at `sequence`; nothing after it may be read."""

    def __init__(self, sequence: int, problem: str) -> None:
        self.sequence = sequence
        self.problem = problem
        super().__init__(f"log sequence {sequence}: {problem}")


class Fleet(FleetState):
    """The state of everything, kept by `apply`."""

    def apply(self, recorded: Recorded) -> None:
        """Fold one event.

        Raises:
            FoldError: it is out of order, or contradicts the events before it.
        """
        if recorded.sequence <= self.sequence:
            raise FoldError(recorded.sequence, f"comes after {self.sequence}")
        try:
            evolve(self, recorded)
        except KeyError as missing:
            problem = f"{tag_of(recorded.event)} refers to {missing.args[0]!r}, which doesn't exist"
            raise FoldError(recorded.sequence, problem) from missing
        self.sequence = recorded.sequence
        self.time_ns = recorded.time_ns
        self.subjects[subject_of(recorded.event)] = recorded.sequence
        self._remember(recorded)

    def apply_all(self, events: Iterable[Recorded]) -> None:
        """Fold `events` in order."""
        for recorded in events:
            self.apply(recorded)

    def _remember(self, recorded: Recorded) -> None:
        envelope = recorded.envelope
        record = CommandRecord(recorded.sequence, envelope.request_digest)
        if envelope.request_digest is not None:
            self.idempotent.pop(envelope.command, None)
            self.idempotent[envelope.command] = record
            oldest = next(iter(self.idempotent))
            if self.idempotent[oldest].sequence < self.sequence - IDEMPOTENT_SEQUENCES:
                del self.idempotent[oldest]
            return
        self.commands.pop(envelope.command, None)
        self.commands[envelope.command] = record
        if len(self.commands) > COMMANDS_MAX:
            del self.commands[next(iter(self.commands))]
