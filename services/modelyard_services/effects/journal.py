"""Decide, append, and decide again when somebody was faster.

Invariant: every aggregate a decision writes is guarded with the sequence the decision saw; a command is applied
at most once, whatever answers get lost (I10, I11).
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import structlog

from modelyard_events.codec import encode, subject_of, tag_of
from modelyard_events.envelope import AnyEvent, Envelope
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.clock import backoff_seconds
from modelyard_services.effects.feed import Feed
from modelyard_services.effects.log.contract import EventIdReused, Log, LogFull, LogUnavailable, Message, SequenceMoved
from modelyard_services.effects.tracing import Span, span
from modelyard_services.errors import ContendedError, IdempotencyError, NotYetError, UnavailableError

ATTEMPTS_MAX: Final = 16
"""Decisions per command. Each lost race means somebody else's won, so sixteen in a row is a hot spot, not luck."""

CATCH_UP_SECONDS: Final = 5.0
"""How long the own fold may take to see what an append just proved to exist."""

RETRY_BASE_SECONDS: Final = 0.002
RETRY_CAP_SECONDS: Final = 0.25


_log = structlog.get_logger(__name__)


class Committed(msgspec.Struct, frozen=True):
    """What became of a command: the sequence to read at, and its events (none when nothing was to do).

    `repeated` when the log held the command already, from an earlier try.
    """

    sequence: int
    events: tuple[AnyEvent, ...]
    repeated: bool = False


Decide = Callable[[Fleet], Sequence[AnyEvent]]
Attribute = Callable[[Fleet, AnyEvent, Envelope], Envelope]
"""Whose story an event belongs to and what led to it, on the fleet it was decided on; the command stays the same."""


def as_one_story(_fleet: Fleet, _event: AnyEvent, envelope: Envelope) -> Envelope:
    """All events of a command share its envelope."""
    return envelope


class _Command(msgspec.Struct, frozen=True):
    """What is asked for, as `commit` takes it."""

    envelope: Envelope
    decide: Decide
    essential: bool
    attribute: Attribute


class Journal:
    """The decide-and-append loop over one log and one warm fold."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._log: Log | None = None

    @property
    def fleet(self) -> Fleet:
        return self._feed.fleet

    def attach(self, log: Log | None) -> None:
        """Append to `log` from now on; None while it is away."""
        self._log = log

    async def commit(
        self, envelope: Envelope, decide: Decide, *, essential: bool = False, attribute: Attribute = as_one_story
    ) -> Committed:
        """Append what `decide` says, deciding again on the newer fleet when a guard fails.

        `essential` marks facts and ends, which are appended even when the log is nearly full; `attribute` says for
        each event whose story it belongs to, where that isn't the command's own.

        Raises:
            ModelyardError: `decide` refused; nothing was appended.
            IdempotencyError: the same key came with another request.
            ContendedError: `ATTEMPTS_MAX` guards failed in a row; nothing was appended.
            UnavailableError: the log is away.
        """
        with span("commit", parent=envelope.trace) as work:
            told = envelope if envelope.trace else msgspec.structs.replace(envelope, trace=work.traceparent)
            return await self._commit(_Command(told, decide, essential, attribute), work)

    async def _commit(self, command: _Command, work: Span) -> Committed:
        envelope = command.envelope
        for attempt in range(ATTEMPTS_MAX):
            recorded = self._recorded(envelope)
            if recorded is not None:
                work.note(repeated=True, sequence=recorded.sequence)
                return recorded
            events = tuple(command.decide(self.fleet))
            if not events:
                return Committed(self.fleet.sequence, ())
            try:
                messages = self._messages(events, command, work)
                sequences = await self._attached().append(messages, essential=command.essential)
            except SequenceMoved as moved:
                work.event("conflict", attempt=attempt, sequence=moved.sequence)
                await self._catch_up(moved.sequence, attempt)
                continue
            except EventIdReused:
                # An earlier try of this very command landed; its record arrives with the feed.
                work.event("repeated", attempt=attempt)
                await self._catch_up(None, attempt)
                continue
            except (LogUnavailable, LogFull) as away:
                raise UnavailableError(away.detail, retry_after_seconds=2) from away
            work.event("appended", sequence=sequences[-1])
            work.note(events=len(events), sequence=sequences[-1], first=tag_of(events[0]))
            await self._fold_own(sequences[-1])
            return Committed(sequences[-1], events)
        raise ContendedError(
            f"{ATTEMPTS_MAX} decisions in a row were overtaken; nothing was done, try again", retry_after_seconds=1
        )

    async def passed(self, sequence: int, *, timeout_seconds: float) -> None:
        """Wait until the own fold has passed `sequence`.

        Raises:
            NotYetError: it hasn't within `timeout_seconds`.
        """
        await self._feed.passed(sequence, timeout_seconds=timeout_seconds)

    async def _fold_own(self, sequence: int) -> None:
        try:
            await self.passed(sequence, timeout_seconds=CATCH_UP_SECONDS)
        except NotYetError:
            # It is in the log, so it is done; only this process's own view of it is late.
            _log.warning("own append not folded yet", sequence=sequence, folded=self.fleet.sequence)

    def _recorded(self, envelope: Envelope) -> Committed | None:
        record = self.fleet.recorded_command(envelope.command)
        if record is None:
            return None
        if record.request_digest != envelope.request_digest:
            raise IdempotencyError(
                "this Idempotency-Key was used with another request; send a new key", field="Idempotency-Key"
            )
        return Committed(record.sequence, (), repeated=True)

    def _attached(self) -> Log:
        if self._feed.failure is not None:
            raise UnavailableError(f"the log can't be read: {self._feed.failure}")
        if self._log is None:
            raise UnavailableError("the log is away; nothing was done", retry_after_seconds=2)
        return self._log

    def _messages(self, events: Sequence[AnyEvent], command: _Command, work: Span) -> list[Message]:
        envelopes = [command.attribute(self.fleet, event, command.envelope) for event in events]
        if work.recorded:
            work.link(envelope.trace for envelope in envelopes)
        return [
            Message(
                subject=subject_of(event),
                event_id=envelope.event_id(position),
                body=encode(event, envelope),
                expected=self.fleet.guard_of(event),
            )
            for position, (event, envelope) in enumerate(zip(events, envelopes, strict=True))
        ]

    async def _catch_up(self, sequence: int | None, attempt: int) -> None:
        if sequence is not None:
            try:
                await self.passed(sequence, timeout_seconds=CATCH_UP_SECONDS)
            except NotYetError as late:
                raise UnavailableError(f"the own fold lags behind the log: {late.detail}") from late
        await asyncio.sleep(backoff_seconds(attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
