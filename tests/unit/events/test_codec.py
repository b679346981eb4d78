"""Events to bytes and back: nothing is skipped, nothing grows past its limit, every error says where."""

import msgspec
import pytest

from modelyard_events.codec import (
    TAGS,
    EventTooLargeError,
    UndecodableEventError,
    decode,
    encode,
    kind_and_name,
    subject_of,
    tag_of,
)
from modelyard_events.envelope import EVENT_BYTES_MAX, Recorded
from modelyard_events.node import NodeRejected
from modelyard_events.subjects import LOG_SUBJECTS
from tests.support.samples import ENVELOPE, NODE, SAMPLES

STORED_NS = 1_767_326_400_123_456_789
"""When the log stored what the tests read; not when the sample's worker says that it happened."""


def read(body: bytes) -> Recorded:
    return decode(body, sequence=7, time_ns=STORED_NS, event_id="c-1.0", batch_end=False)


def with_event(**changed: object) -> bytes:
    raw = msgspec.json.decode(encode(SAMPLES["node.lost.v1"], ENVELOPE))
    raw["event"].update(changed)
    return msgspec.json.encode(raw)


def test_an_event_keeps_its_place_in_the_log_and_the_logs_own_time() -> None:
    """H1: a worker's clock is in its envelope, and nothing else goes by it."""
    recorded = read(encode(SAMPLES["node.cordoned.v1"], ENVELOPE))
    assert (recorded.sequence, recorded.event_id, recorded.batch_end) == (7, "c-1.0", False)
    assert recorded.time_ns == STORED_NS
    assert recorded.time.isoformat() == "2026-01-02T04:00:00.123456+00:00"
    assert recorded.envelope.occurred_at == ENVELOPE.occurred_at
    assert recorded.time != ENVELOPE.occurred_at


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (with_event(type="node.teleported.v1"), "unknown tag 'node.teleported.v1'; upgrade this reader first"),
        (with_event(grace_seconds="soon"), "corrupt node.lost.v1"),
        (with_event(type=None), "unknown tag None"),
        (b'{"event": {}}', "corrupt body"),
        (b"\x00\xff", "corrupt body"),
        (b"", "corrupt body"),
        (b"[]", "corrupt body"),
        (with_event(type="node.departed.v0", node=5), "node.departed.v0 can't be brought up to date"),
    ],
)
def test_a_body_that_cant_be_read_stops_its_reader_and_says_where(body: bytes, said: str) -> None:
    with pytest.raises(UndecodableEventError, match="log sequence 7") as raised:
        read(body)
    assert said in str(raised.value)
    assert raised.value.sequence == 7


def test_a_field_from_the_future_is_no_reason_to_stop() -> None:
    assert read(with_event(weather="fine")).event == SAMPLES["node.lost.v1"]


def test_an_event_beyond_its_limit_is_refused_before_it_is_sent() -> None:
    with pytest.raises(EventTooLargeError, match=rf"node\.rejected\.v1 encodes to \d+ bytes; .* {EVENT_BYTES_MAX}"):
        encode(NodeRejected(node=NODE, reason="x" * EVENT_BYTES_MAX), ENVELOPE)


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_every_event_knows_its_tag_and_its_address(tag: str) -> None:
    event = SAMPLES[tag]
    kind, name = kind_and_name(tag)
    assert tag_of(event) == tag == f"{kind}.{name}.v1"
    assert subject_of(event).startswith(LOG_SUBJECTS.removesuffix(">"))


def test_replicas_and_reservations_stand_on_their_nodes_address() -> None:
    """One guard holds slots, memory and groups of a node together (DESIGN 2)."""
    tags = ("node.lost.v1", "replica.placed.v1", "reservation.granted.v1")
    assert {subject_of(SAMPLES[tag]) for tag in tags} == {"modelyard.log.node.gpu-1"}
