"""What a log is: the record every decision lands in and every fold reads, as bytes.

```
LogFailure
├── SequenceMoved      sequence_moved        a guard failed: the aggregate moved on since it was folded
├── DecisionMalformed  decision_malformed    the decision can't be appended, whatever the log holds
│   └── DecisionTooLarge decision_too_large  a named limit of it is passed
├── EventIdReused      event_id_reused       an event id stands in the log already, under another guard
├── LogFull            log_full              no room; from 90 % on only essential decisions are taken
├── LogUnavailable     log_unavailable       no definite answer in time; `nothing_written` says what is known
├── LogMisconfigured   log_misconfigured     the stream isn't the one we need; nothing will work
├── LogReplaced        log_replaced          another log answers, or it ends before the given sequence
└── LogGap             log_gap               a sequence is missing for good
```

Invariant: what `append` acknowledged is in the log, once, densely; what it refused is not. Sequences start at 1
and have no holes; they are the only order.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Final, Protocol

from msgspec import Struct

from modelyard_services.errors import ModelyardError, UnavailableError

EVENT_BYTES_MAX: Final = 64 * 1024
"""One body. Bigger ones belong in the object they name; replay speed is a function of this."""

DECISION_MESSAGES_MAX: Final = 1_000
"""What the server takes in one atomic batch (`limits.batch.max_msgs`)."""

DECISION_BYTES_MAX: Final = 8 * 1024 * 1024
"""All bodies of a decision: what a follower may have to hold until it has seen the batch's end."""

EVENT_ID_CHARACTERS_MAX: Final = 256
"""Ids travel in a header line; ours are a command id and an index."""

HEADROOM_FRACTION: Final = 0.9
"""From here on only facts and ends are appended, so that a full log can still be told that things have ended."""


class Message(Struct, frozen=True, gc=False):
    """One event on its way into the log.

    Attributes:
        subject: the aggregate's address, already escaped.
        event_id: derived from the command id, so that asking twice changes nothing.
        body: the encoded event.
        expected: the guard, the last sequence on that subject its decider had folded (0: none yet). Only the first
            message of each subject in a decision is guarded.
    """

    subject: str
    event_id: str
    body: bytes
    expected: int


class Stored(Struct, frozen=True, gc=False):
    """One event in the log.

    Attributes:
        sequence: its place in the log.
        time_ns: when the log took it, Unix time.
        subject: the aggregate's address.
        event_id: as its writer gave it.
        body: the encoded event.
        batch_end: whether a fold may stop here: the last of its atomic batch, or alone.
        guard: the sequence its writer had guarded the subject with; None if an earlier message of the decision did.
    """

    sequence: int
    time_ns: int
    subject: str
    event_id: str
    body: bytes
    batch_end: bool
    guard: int | None = None


class LogFailure(ModelyardError):  # noqa: N818  the errors below are named after what happened, as everything here
    """An append or a read that didn't happen."""


class SequenceMoved(LogFailure):
    """A guard failed: fold up to `sequence`, then decide again. None: somebody is writing there right now."""

    code: ClassVar[str] = "sequence_moved"
    retryable: ClassVar[bool] = True

    def __init__(self, subject: str, sequence: int | None) -> None:
        self.subject = subject
        self.sequence = sequence
        where = "is being written by someone else" if sequence is None else f"is at sequence {sequence} now"
        super().__init__(f"{subject} {where}: fold it, then decide again")


class DecisionMalformed(LogFailure):
    code: ClassVar[str] = "decision_malformed"


class DecisionTooLarge(DecisionMalformed):
    code: ClassVar[str] = "decision_too_large"


class EventIdReused(LogFailure):
    """The guards hold, yet the id is taken: the command was decided earlier, on an older state."""

    code: ClassVar[str] = "event_id_reused"

    def __init__(self, event_id: str) -> None:
        self.event_id = event_id
        super().__init__(f"event id {event_id} stands in the log already, under another guard")


class LogFull(LogFailure):
    code: ClassVar[str] = "log_full"


class LogUnavailable(LogFailure, UnavailableError):  # noqa: N818  as above
    """No definite answer in time, however often it was asked.

    Attributes:
        problem: what was seen.
        nothing_written: True if the decision certainly isn't in the log; False if it may be, or may still get there:
            repeat it with the same ids and guards, nothing else is safe.
    """

    code: ClassVar[str] = "log_unavailable"
    retryable: ClassVar[bool] = True

    def __init__(self, detail: str, *, nothing_written: bool) -> None:
        self.problem = detail
        self.nothing_written = nothing_written
        outcome = "nothing was written" if nothing_written else "the outcome is unknown"
        super().__init__(f"{detail}; {outcome}")


class LogMisconfigured(LogFailure):
    code: ClassVar[str] = "log_misconfigured"


class LogReplaced(LogFailure):
    code: ClassVar[str] = "log_replaced"


class LogGap(LogFailure):
    code: ClassVar[str] = "log_gap"


class Log(Protocol):
    """The record. `log_id` names this one for ever: every checkpoint stores it."""

    @property
    def log_id(self) -> str: ...

    async def append(self, decision: Sequence[Message], *, essential: bool = False) -> tuple[int, ...]:
        """Write all of `decision` or nothing, and return its sequences.

        The same decision again gives the same sequences. `essential` is for facts and ends, which are still taken
        when the log is nearly full.

        Raises:
            LogFailure: one of those drawn above.
        """
        ...

    def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        """Every event after `after` in order, for ever, in chunks that end on batch ends.

        With a `subject`, only that aggregate's; then a chunk may end inside a batch. Resumes by itself.

        Raises:
            LogReplaced: the log isn't the one this object was opened on, or ends before `after`.
            LogGap: events after `after` are gone.
        """
        ...

    async def last_sequence(self) -> int:
        """The sequence of the newest event, 0 in an empty log."""
        ...

    async def read(self, sequence: int) -> Stored | None:
        """One event, None if there is none there."""
        ...

    async def sequence_at(self, time_ns: int) -> int:
        """The last batch end at or before that time; 0 if nothing is that old."""
        ...
