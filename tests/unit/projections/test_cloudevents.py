"""The public form of events: CloudEvents 1.0 in binary mode, the same whoever makes it."""

import re
from datetime import datetime
from urllib.parse import unquote

import msgspec
import pytest

from modelyard_events.codec import TAGS, kind_and_name
from modelyard_events.envelope import Actor, Envelope, Recorded
from modelyard_events.ids import CommandId
from modelyard_events.model import ModelRemoved
from modelyard_events.subjects import EVENTS_SUBJECTS
from modelyard_projections.cloudevents import HEADER_CHARACTERS_MAX, CloudEvent, cloud_event
from tests.support.samples import ENVELOPE, SAMPLES

REQUIRED = {"ce-id", "ce-source", "ce-specversion", "ce-type"}


def told(tag: str, sequence: int = 42) -> CloudEvent:
    recorded = Recorded(sequence, 1_767_323_045_678_901_234, ENVELOPE.event_id(3), SAMPLES[tag], ENVELOPE)
    return cloud_event(recorded, log_id="f00d")


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_every_event_is_a_valid_cloudevent(tag: str) -> None:
    message = told(tag)
    assert message.headers.keys() >= REQUIRED
    names = [header.removeprefix("ce-") for header in message.headers]
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in names), "attribute names are lower-case alphanumeric"
    assert all(re.fullmatch("[!-~]+", value) for value in message.headers.values()), "header values are plain ASCII"
    assert message.headers["ce-type"] == tag
    assert message.headers["ce-source"] == "urn:modelyard:log:f00d"
    assert datetime.fromisoformat(message.headers["ce-time"]).isoformat() == "2026-01-02T03:04:05.678901+00:00"
    assert msgspec.json.decode(message.data)["type"] == tag
    assert msgspec.json.decode(message.data, type=type(SAMPLES[tag])) == SAMPLES[tag]


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_a_subject_is_kind_aggregate_and_name(tag: str) -> None:
    kind, name = kind_and_name(tag)
    tokens = told(tag).subject.split(".")
    assert tokens[:2] == EVENTS_SUBJECTS.split(".")[:2]
    assert (tokens[2], tokens[4], len(tokens)) == (kind, name, 5)
    assert tokens[3] in {"gpu-1", "Qwen/Qwen3-32B:q4", "fleet"}


def test_who_why_and_in_whose_name_travel_as_extensions() -> None:
    headers = told("replica.placed.v1").headers
    assert (headers["ce-actorkind"], headers["ce-actorname"]) == ("operator", "anna")
    assert headers["ce-correlationid"] == ENVELOPE.correlation
    assert headers["ce-causationid"] == ENVELOPE.causation
    assert headers["ce-traceparent"] == ENVELOPE.trace
    assert headers["ce-subject"] == "replica/r-2hoejiwhunshdzsy"
    assert headers["ce-partitionkey"] == "node/gpu-1"


def test_sequences_sort_as_text() -> None:
    texts = [told("node.cordoned.v1", sequence).headers["ce-sequence"] for sequence in (9, 10, 2**63)]
    assert texts == sorted(texts)
    assert int(texts[-1]) == 2**63


def test_what_has_no_cause_says_none() -> None:
    envelope = Envelope(Actor("system", "reconciler"), CommandId("c-1"), "c-1")
    event = cloud_event(Recorded(1, 0, envelope.event_id(0), SAMPLES["node.lost.v1"], envelope), log_id="f00d")
    assert not event.headers.keys() & {"ce-causationid", "ce-traceparent", "ce-occurredat"}


@pytest.mark.parametrize("name", ["model ünïcödé ✓", 'say "100%"', "tab\there", "x" * 5_000, "✓" * 5_000])
def test_any_name_fits_a_header_and_comes_back(name: str) -> None:
    envelope = msgspec.structs.replace(ENVELOPE, actor=Actor("client", "zoë"))
    event = cloud_event(Recorded(1, 0, envelope.event_id(0), ModelRemoved(model=name), envelope), log_id="f00d")
    assert unquote(event.headers["ce-partitionkey"]) == f"model/{name}"[:HEADER_CHARACTERS_MAX]
    assert unquote(event.headers["ce-actorname"]) == "zoë"
