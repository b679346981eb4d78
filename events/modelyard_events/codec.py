"""Events to bytes and back, by one registry that checks itself when it is imported.

Invariant: every tag ever published decodes; a tag nobody knows stops its reader, which never skips.
"""

from collections.abc import Mapping
from typing import Any, Final, get_args

import msgspec

from modelyard_events.base import Event, FleetEvent, ModelEvent, NodeEvent
from modelyard_events.envelope import EVENT_BYTES_MAX, AnyEvent, Entry, Envelope, Recorded
from modelyard_events.ids import EventId, ModelName, NodeName
from modelyard_events.subjects import FLEET_SUBJECT, model_subject, node_subject
from modelyard_events.upcasters import UPCASTERS, upcast

EVENT_TYPES: Final[tuple[type[Event], ...]] = get_args(AnyEvent)

_ENCODER: Final = msgspec.json.Encoder()
_DECODER: Final = msgspec.json.Decoder(Entry)


class UndecodableEventError(ValueError):
    """A log message that no reader may skip: its tag is unknown, or its body is corrupt."""

    def __init__(self, sequence: int, problem: str) -> None:
        self.sequence = sequence
        self.problem = problem
        super().__init__(f"log sequence {sequence}: {problem}")


class EventTooLargeError(ValueError):
    """An event beyond `EVENT_BYTES_MAX`; nothing of its decision is appended."""

    def __init__(self, tag: str, size: int) -> None:
        self.tag = tag
        self.size = size
        super().__init__(f"{tag} encodes to {size} bytes; an event has at most {EVENT_BYTES_MAX}")


def tag_of(event: Event | type[Event]) -> str:
    """The wire name of an event: `<kind>.<name>.v<n>`."""
    tag = event.__struct_config__.tag
    if not isinstance(tag, str):
        raise TypeError(f"{event!r} has no tag")
    return tag


TAGS: Final[Mapping[str, type[Event]]] = {tag_of(kind): kind for kind in EVENT_TYPES}


def subject_of(event: AnyEvent) -> str:
    """The log address of the aggregate the event belongs to."""
    if isinstance(event, NodeEvent):
        return node_subject(NodeName(event.node))
    if isinstance(event, ModelEvent):
        return model_subject(ModelName(event.model))
    return FLEET_SUBJECT


def encode(event: AnyEvent, envelope: Envelope) -> bytes:
    """The body of the log message.

    Raises:
        EventTooLargeError: it is beyond `EVENT_BYTES_MAX`.
    """
    body = _ENCODER.encode(Entry(event, envelope))
    if len(body) > EVENT_BYTES_MAX:
        raise EventTooLargeError(tag_of(event), len(body))
    return body


def decode(body: bytes, *, sequence: int, time_ns: int, event_id: str, batch_end: bool = True) -> Recorded:
    """The event behind a stored body.

    Raises:
        UndecodableEventError: unknown tag or corrupt body; the reader must stop there.
    """
    try:
        entry = _DECODER.decode(body)
    except (msgspec.MsgspecError, ValueError) as error:
        entry = _decode_retired(body, sequence=sequence, cause=error)
    return Recorded(sequence, time_ns, EventId(event_id), entry.event, entry.envelope, batch_end)


def _decode_retired(body: bytes, *, sequence: int, cause: Exception) -> Entry:
    try:
        raw: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
        tag = raw["event"]["type"]
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError):
        raise UndecodableEventError(sequence, f"corrupt body: {cause}") from cause
    if tag not in UPCASTERS:
        problem = f"corrupt {tag}: {cause}" if tag in TAGS else f"unknown tag {tag!r}; upgrade this reader first"
        raise UndecodableEventError(sequence, problem) from cause
    try:
        return msgspec.convert({**raw, "event": upcast(raw["event"])}, Entry)
    except (msgspec.MsgspecError, ValueError, KeyError, TypeError) as error:
        raise UndecodableEventError(sequence, f"{tag} can't be brought up to date: {error}") from error


def kind_and_name(tag: str) -> tuple[str, str]:
    """`("replica", "placed")` of `replica.placed.v1`."""
    kind, name, _version = tag.split(".")
    return kind, name


def _check_registry(bases: tuple[type[Event], ...] = (NodeEvent, ModelEvent, FleetEvent)) -> None:
    """Fails the import when the catalogue contradicts itself."""
    if len(TAGS) != len(EVENT_TYPES):
        raise TypeError("two events share a tag")
    for tag, kind in TAGS.items():
        parts = tag.split(".")
        if len(parts) != 3 or not parts[2].startswith("v") or not parts[2][1:].isdigit():  # noqa: PLR2004
            raise TypeError(f"{tag} isn't <kind>.<name>.v<n>")
        if not issubclass(kind, bases):
            raise TypeError(f"{tag} belongs to no aggregate")
    listed = set(EVENT_TYPES)
    for base in bases:
        if unlisted := [kind.__name__ for kind in base.__subclasses__() if kind not in listed]:
            raise TypeError(f"not in AnyEvent: {unlisted}")
    if both := TAGS.keys() & UPCASTERS.keys():
        raise TypeError(f"tags both current and retired: {sorted(both)}")


_check_registry()
