"""The envelope around an event: who, why, in whose name, and where in the log it stands.

Invariant: who did it is never unknown (rule H1); the only order is the sequence, the only time the log's own.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec

from modelyard_events.fleet import FleetOwnEvent
from modelyard_events.ids import CommandId, EventId
from modelyard_events.model import ModelOwnEvent
from modelyard_events.node import NodeOwnEvent
from modelyard_events.replica import ReplicaEvent
from modelyard_events.reservation import ReservationEvent

AnyNodeEvent = NodeOwnEvent | ReplicaEvent | ReservationEvent
AnyEvent = AnyNodeEvent | ModelOwnEvent | FleetOwnEvent

EVENT_BYTES_MAX: Final = 64 * 1024
"""A whole entry as stored; NATS itself allows 1 MiB, readers are sized for this."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Actor(msgspec.Struct, frozen=True, gc=False):
    """Who: an operator's token, a client of the gateway, a worker by its node, or one of our own processes."""

    kind: Literal["operator", "client", "worker", "system"]
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What all events of one command share.

    Attributes:
        command: the command's id; event ids are `<command>.<position>`.
        correlation: the story it belongs to, from the first command on.
        causation: the event that led to it, None when a person or a client asked.
        trace: W3C traceparent of the request.
        request_digest: SHA-256 of an idempotent request, to tell a retry from another body under the same key.
        occurred_at: the worker's own clock, for what happened there before it was told.
    """

    actor: Actor
    command: CommandId
    correlation: str
    causation: EventId | None = None
    trace: str | None = None
    request_digest: str | None = None
    occurred_at: datetime | None = None

    def event_id(self, position: int) -> EventId:
        """The id of the command's event at `position` (0-based): the same for every try."""
        return EventId(f"{self.command}.{position}")


class Entry(msgspec.Struct, frozen=True, gc=False):
    """The body of a log message."""

    event: AnyEvent
    envelope: Envelope


class Recorded(msgspec.Struct, frozen=True, gc=False):
    """An event as the log holds it.

    `time_ns` is the log's stored time in nanoseconds since 1970; `batch_end` marks the last of an atomic batch.
    """

    sequence: int
    time_ns: int
    event_id: EventId
    event: AnyEvent
    envelope: Envelope
    batch_end: bool = True

    @property
    def time(self) -> datetime:
        """The stored time, to the microsecond."""
        return instant(self.time_ns)


def instant(time_ns: int) -> datetime:
    """Nanoseconds since 1970 as a time in UTC, to the microsecond."""
    return _EPOCH + timedelta(microseconds=time_ns // 1_000)
