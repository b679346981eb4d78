"""The generated contract says what is really sent: every message fits it, every reference in it resolves."""

import re
from typing import Any

import msgspec
import pytest
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from jsonschema import Draft202012Validator, ValidationError  # type: ignore[import-untyped]  # it ships no types

from modelyard_events.codec import TAGS
from modelyard_events.envelope import Recorded
from modelyard_projections.asyncapi import asyncapi_document, event_schemas
from modelyard_projections.cloudevents import CloudEvent, cloud_event
from tests.support.samples import ENVELOPE, SAMPLES

DOCUMENT: Any = msgspec.json.decode(msgspec.json.encode(asyncapi_document(version="1.2.3")))


def told(tag: str) -> CloudEvent:
    return cloud_event(Recorded(7, 1, ENVELOPE.event_id(0), SAMPLES[tag], ENVELOPE), log_id="f00d")


def resolved(reference: str) -> Any:
    found: Any = DOCUMENT
    for part in reference.removeprefix("#/").split("/"):
        found = found[part]
    return found


def references(part: object) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [one for value in part.values() for one in references(value)]
    return [one for value in part for one in references(value)] if isinstance(part, list) else []


def test_the_document_is_asyncapi_3() -> None:
    """By the model of an independent implementation, which wants a path where the specification lets it out."""
    servers = {name: {**server, "pathname": "/"} for name, server in DOCUMENT["servers"].items()}
    assert ApplicationSchema.model_validate({**DOCUMENT, "servers": servers}).asyncapi == "3.0.0"


def test_there_is_one_channel_one_message_and_one_operation_for_each_tag() -> None:
    assert DOCUMENT["channels"].keys() == TAGS.keys()
    assert DOCUMENT["components"]["messages"].keys() == TAGS.keys()
    assert {one["channel"]["$ref"] for one in DOCUMENT["operations"].values()} == {f"#/channels/{tag}" for tag in TAGS}


def test_every_reference_resolves() -> None:
    found = references(DOCUMENT)
    assert len(found) > 3 * len(TAGS)
    for reference in found:
        assert resolved(reference)


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_what_is_sent_fits_its_channel(tag: str) -> None:
    message = told(tag)
    channel = DOCUMENT["channels"][tag]
    assert all(f"{{{name}}}" in channel["address"] for name in channel.get("parameters", {}))
    pattern = re.escape(channel["address"]).replace(r"\{node\}", "[^.]+").replace(r"\{model\}", "[^.]+")
    assert re.fullmatch(pattern, message.subject)


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_what_is_sent_fits_its_schemas(tag: str) -> None:
    message = told(tag)
    schema = event_schemas()[tag]
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(msgspec.json.decode(message.data))
    headers = DOCUMENT["components"]["messageTraits"]["cloudevent"]["headers"]
    Draft202012Validator({**headers, "additionalProperties": False}).validate(dict(message.headers))


def test_a_schema_refuses_what_isnt_its_event() -> None:
    wrong = msgspec.json.decode(told("node.lost.v1").data)
    wrong["grace_seconds"] = "soon"
    for tag in ("node.lost.v1", "node.recovered.v1"):
        with pytest.raises(ValidationError):
            Draft202012Validator(event_schemas()[tag]).validate(wrong)
