"""Which event led to an action: the last one of the thing the action is about (rule H1).

Invariant: bounded; what was forgotten, or is due by time alone, has no cause but the reconciler itself.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from modelyard_events.base import ModelEvent, NodeEvent
from modelyard_events.envelope import Recorded
from modelyard_events.ids import EventId
from modelyard_projections.fleet import Touched

CAUSES_MAX: Final = 20_000
"""Things remembered: the largest fleet's replicas."""


class Cause(msgspec.Struct, frozen=True):
    """`trace` is the W3C trace of the event at `time_ns`, if it has one."""

    event_id: EventId
    correlation: str
    time_ns: int
    trace: str | None


class Causes:
    """The last event of each node, model, replica and reservation."""

    def __init__(self) -> None:
        self._last: dict[Touched, Cause] = {}

    def note(self, events: Sequence[Recorded]) -> None:
        """Take note of events in log order."""
        for recorded in events:
            envelope = recorded.envelope
            cause = Cause(recorded.event_id, envelope.correlation, recorded.time_ns, envelope.trace)
            for thing in _things(recorded):
                self._last.pop(thing, None)
                self._last[thing] = cause
        while len(self._last) > CAUSES_MAX:
            del self._last[next(iter(self._last))]

    def of(self, thing: Touched) -> Cause | None:
        return self._last.get(thing)


def _things(recorded: Recorded) -> Iterator[Touched]:
    event = recorded.event
    if isinstance(event, ModelEvent):
        yield "model", event.model
    elif isinstance(event, NodeEvent):
        yield "node", event.node
    else:
        yield "settings", "settings"
    for field in ("replica", "replicas"):
        named = getattr(event, field, ())
        for replica in (named,) if isinstance(named, str) else named:
            yield "replica", replica
    reservation = getattr(event, "reservation", None)
    if reservation is not None:
        yield "reservation", reservation
