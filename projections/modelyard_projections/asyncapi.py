"""The public stream's contract, generated from the event types themselves: AsyncAPI 3.0, and a JSON Schema per tag.

Invariant: one channel and one message per current tag, and nothing that no type says; so the document can't be out
of date.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from modelyard_events.base import FleetEvent, ModelEvent, NodeEvent
from modelyard_events.codec import TAGS, kind_and_name
from modelyard_events.subjects import EVENTS_STREAM, EVENTS_SUBJECTS
from modelyard_projections.cloudevents import CONTENT_TYPE, SEQUENCE_DIGITS, SPEC_VERSION

Document = dict[str, Any]

ASYNCAPI_VERSION: Final = "3.0.0"
SCHEMA_DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_COMPONENT: Final = "#/components/schemas/{name}"
_PREFIX: Final = EVENTS_SUBJECTS.removesuffix(">")

_HEADERS: Final[Mapping[str, str]] = {
    "ce-id": "The event's id, unique for ever: what a consumer tells repeats by.",
    "ce-source": "`urn:modelyard:log:<id>` of the log the event is from.",
    "ce-type": "The tag, `<kind>.<name>.v<n>`.",
    "ce-time": "When the log took it, RFC 3339 UTC.",
    "ce-subject": "What it happened to: `replica/<id>`, `node/<name>` …",
    "ce-sequence": f"Its place in the log, {SEQUENCE_DIGITS} digits, so that it sorts as text.",
    "ce-partitionkey": "Its aggregate: events that share it are in order.",
    "ce-correlationid": "The story it belongs to.",
    "ce-commandid": "The command whose outcome it is.",
    "ce-actorkind": "Who: `operator`, `client`, `worker` or `system`.",
    "ce-actorname": "Who, by name.",
    "ce-causationid": "The id of the event that led to it, if one did.",
    "ce-traceparent": "W3C trace context of the request, if it had one.",
    "ce-occurredat": "The worker's own clock, for what happened there before it was told.",
}
_OPTIONAL: Final = frozenset({"ce-causationid", "ce-traceparent", "ce-occurredat"})


def event_schemas() -> dict[str, Document]:
    """The JSON Schema of every tag's data, each complete in itself."""
    return {tag: {"$schema": SCHEMA_DIALECT, **msgspec.json.schema(kind)} for tag, kind in TAGS.items()}


def asyncapi_document(*, version: str, nats_host: str = "localhost:4222") -> Document:
    """The AsyncAPI document of the public stream; `version` is modelyard's."""
    references, schemas = msgspec.json.schema_components(list(TAGS.values()), ref_template=_COMPONENT)
    payloads = dict(zip(TAGS, references, strict=True))
    return {
        "asyncapi": ASYNCAPI_VERSION,
        "id": "urn:modelyard:events",
        "info": {
            "title": "modelyard lifecycle events",
            "version": version,
            "description": (
                f"Every event of the log, once and in order, on the JetStream stream {EVENTS_STREAM} as CloudEvents "
                f"{SPEC_VERSION} in binary mode. The stream's sequence is the log's."
            ),
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"nats": {"host": nats_host, "protocol": "nats"}},
        "channels": {tag: _channel(tag) for tag in TAGS},
        "operations": {f"tell.{tag}": _operation(tag) for tag in TAGS},
        "components": {
            "schemas": schemas,
            "messages": {tag: _message(tag, payloads[tag]) for tag in TAGS},
            "messageTraits": {"cloudevent": {"headers": _headers_schema()}},
        },
    }


def _channel(tag: str) -> Document:
    kind, name = kind_and_name(tag)
    aggregate = _aggregate(tag)
    identity = "fleet" if aggregate is None else f"{{{aggregate}}}"
    channel: Document = {
        "address": f"{_PREFIX}{kind}.{identity}.{name}",
        "messages": {tag: {"$ref": f"#/components/messages/{tag}"}},
    }
    if aggregate is not None:
        text = f"The {aggregate}'s name, escaped into one subject token (`.` is `=2E`)."
        channel["parameters"] = {aggregate: {"description": text}}
    return channel


def _operation(tag: str) -> Document:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{tag}"},
        "messages": [{"$ref": f"#/channels/{tag}/messages/{tag}"}],
    }


def _message(tag: str, payload: Document) -> Document:
    message: Document = {
        "name": tag,
        "contentType": CONTENT_TYPE,
        "payload": payload,
        "traits": [{"$ref": "#/components/messageTraits/cloudevent"}],
    }
    if text := inspect.getdoc(TAGS[tag]):
        message["summary"] = text.split("\n\n", maxsplit=1)[0].replace("\n", " ")
    return message


def _headers_schema() -> Document:
    properties: Document = {name: {"type": "string", "description": text} for name, text in _HEADERS.items()}
    properties["ce-specversion"] = {"type": "string", "const": SPEC_VERSION}
    properties["ce-datacontenttype"] = {"type": "string", "const": CONTENT_TYPE}
    return {"type": "object", "properties": properties, "required": sorted(properties.keys() - _OPTIONAL)}


def _aggregate(tag: str) -> str | None:
    """The parameter of the tag's subject; None where it has none."""
    kind = TAGS[tag]
    if issubclass(kind, NodeEvent):
        return "node"
    if issubclass(kind, ModelEvent):
        return "model"
    if issubclass(kind, FleetEvent):
        return None
    raise TypeError(f"{tag} belongs to no aggregate")
