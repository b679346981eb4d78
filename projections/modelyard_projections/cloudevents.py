"""Log events as CloudEvents 1.0, in binary mode: attributes as headers, the event itself as JSON data. Pure.

Invariant: the same log event gives the same message, whoever makes it and whenever; so rival relays can't differ.
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import quote

import msgspec

from modelyard_events.base import FleetEvent, ModelEvent, NodeEvent
from modelyard_events.codec import kind_and_name, tag_of
from modelyard_events.envelope import AnyEvent, Recorded
from modelyard_events.subjects import public_subject

SPEC_VERSION: Final = "1.0"
CONTENT_TYPE: Final = "application/json"

SEQUENCE_DIGITS: Final = 20
"""CloudEvents wants sequences that sort as text; every 64-bit number has so many digits."""

HEADER_CHARACTERS_MAX: Final = 300
"""Of one attribute, before encoding: every name fits, and all attributes in the 64 KiB that NATS takes of headers."""

# Printable ASCII but for the three that the binding reserves: space, double quote, percent.
_PLAIN: Final = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_ENCODER: Final = msgspec.json.Encoder()


class CloudEvent(msgspec.Struct, frozen=True):
    """A message of the public stream."""

    subject: str
    headers: Mapping[str, str]
    data: bytes


def cloud_event(recorded: Recorded, *, log_id: str) -> CloudEvent:
    """The message that tells of `recorded`, an event of the log `log_id`."""
    event = recorded.event
    kind, name = kind_and_name(tag_of(event))
    attributes = {
        "specversion": SPEC_VERSION,
        "id": recorded.event_id,
        "type": tag_of(event),
        "source": source(log_id),
        "subject": concerned(event),
        "time": recorded.time.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "datacontenttype": CONTENT_TYPE,
        "sequence": f"{recorded.sequence:0{SEQUENCE_DIGITS}d}",
        "partitionkey": aggregate(event),
        **_envelope_attributes(recorded),
    }
    headers = {f"ce-{attribute}": header_value(value) for attribute, value in attributes.items()}
    subject = public_subject(kind=kind, identity=identity(event), name=name)
    return CloudEvent(subject, headers, _ENCODER.encode(event))


def source(log_id: str) -> str:
    """The `source` of all events of one log."""
    return f"urn:modelyard:log:{log_id}"


def identity(event: AnyEvent) -> str:
    """The name of the aggregate that the event belongs to: its place in the public subject."""
    match event:
        case NodeEvent(node=node):
            return node
        case ModelEvent(model=model):
            return model
        case FleetEvent():
            return "fleet"
        case _:
            raise TypeError(f"{event!r} belongs to no aggregate")


def aggregate(event: AnyEvent) -> str:
    """Kind and name of the aggregate: events that share it are in order for every consumer."""
    match event:
        case NodeEvent(node=node):
            return f"node/{node}"
        case ModelEvent(model=model):
            return f"model/{model}"
        case _:
            return "fleet"


def concerned(event: AnyEvent) -> str:
    """What the event happened to: the one replica or reservation it names, else its aggregate."""
    for kind in ("replica", "reservation"):
        name = getattr(event, kind, None)
        if isinstance(event, NodeEvent) and name is not None:
            return f"{kind}/{name}"
    return aggregate(event)


def header_value(text: str) -> str:
    """`text` as the binding writes it in a header: percent-encoded UTF-8, bounded; the data has all of it."""
    return quote(text[:HEADER_CHARACTERS_MAX], safe=_PLAIN)


def _envelope_attributes(recorded: Recorded) -> dict[str, str]:
    envelope = recorded.envelope
    optional = {
        "causationid": envelope.causation,
        "traceparent": envelope.trace,
        "occurredat": envelope.occurred_at.isoformat() if envelope.occurred_at else None,
    }
    return {
        "actorkind": envelope.actor.kind,
        "actorname": envelope.actor.name,
        "commandid": envelope.command,
        "correlationid": envelope.correlation,
        **{attribute: value for attribute, value in optional.items() if value is not None},
    }
