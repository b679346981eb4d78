"""An event as pages and streams of the history show it: alike, with all that its envelope says (H1)."""

import msgspec

from modelyard_events.codec import encode
from modelyard_events.envelope import Recorded
from modelyard_events.node import NodeCordoned
from modelyard_projections.fleet import Fleet
from modelyard_projections.history import History
from modelyard_projections.queries import EventRecord
from modelyard_services.api.history import _view, view_of_record
from modelyard_services.cli.history import _told_late
from tests.support.samples import ENVELOPE


def test_a_page_and_a_stream_show_the_same_event_alike() -> None:
    """H1: time, actor, correlation, causation, trace, and a worker's own time of what happened there."""
    event = NodeCordoned(node="n1")
    recorded = Recorded(7, 1_750_000_000_000_000_000, ENVELOPE.event_id(0), event, ENVELOPE)
    streamed = _view(recorded)
    history = History()
    history.add(recorded, encode(event, ENVELOPE), Fleet())
    paged = view_of_record(msgspec.convert(history.events[0], EventRecord, from_attributes=True))
    assert msgspec.json.encode(streamed) == msgspec.json.encode(paged)
    assert streamed.time == recorded.time
    assert paged.occurred_at == ENVELOPE.occurred_at is not None


def test_people_are_told_of_a_time_that_differs_from_the_logs() -> None:
    """H1, W8: a crash in an outage is told of after it."""
    told = {"time": "2026-01-02T03:04:05.000000Z"}
    assert not _told_late(told)
    assert not _told_late({**told, "occurred_at": "2026-01-02T03:04:04.500000Z"})
    assert _told_late({**told, "occurred_at": "2026-01-02T02:50:00Z"})
