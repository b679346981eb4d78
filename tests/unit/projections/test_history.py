"""Events as rows of the history: everybody an event concerns finds it under his name (H1, H2)."""

import pytest

from modelyard_events.codec import TAGS, decode, encode
from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.replica import ReplicaUnloaded
from modelyard_events.reservation import ReservationReleased
from modelyard_projections.fleet import Fleet
from modelyard_projections.history import COLUMN_CHARACTERS_MAX, History, column_text, mentions
from tests.support.given import a_model, a_ready_replica, an_approved_node, given
from tests.support.samples import ENVELOPE, MODEL, NODE, OTHER, REPLICA, RESERVATION, SAMPLES


def recorded(tag: str) -> tuple[Recorded, bytes]:
    body = encode(SAMPLES[tag], ENVELOPE)
    return decode(body, sequence=7, time_ns=1, event_id="c-1.0"), body


def test_a_placement_concerns_its_victims_and_whom_it_replaces() -> None:
    found = mentions(recorded("replica.placed.v1")[0], Fleet())
    assert set(found) == {
        ("node", NODE),
        ("model", MODEL),
        ("replica", REPLICA),
        ("replica", OTHER),
        ("reservation", RESERVATION),
    }


def test_what_happens_to_a_replica_concerns_its_model() -> None:
    """The events themselves name the replica only."""
    fleet = given(*an_approved_node("n1"), *a_model("m"), *a_ready_replica("r-1")).fleet
    events = (
        ReplicaUnloaded(node="n1", replicas=(ReplicaId("r-1"),), reason="idle"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"),)),
    )
    for event in events:
        found = mentions(Recorded(9, 0, ENVELOPE.event_id(0), event, ENVELOPE), fleet)
        assert {("node", NodeName("n1")), ("replica", "r-1"), ("model", ModelName("m"))} <= set(found)


@pytest.mark.parametrize("tag", sorted(TAGS))
def test_every_event_makes_one_row_with_its_exact_body_and_all_of_its_envelope(tag: str) -> None:
    history = History()
    one, body = recorded(tag)
    history.add(one, body, Fleet())
    (row,) = history.events
    assert bytes(row.body) == body
    assert (row.sequence, row.tag, row.actor_kind, row.actor_name) == (7, tag, "operator", "anna")
    assert (row.correlation, row.causation, row.trace) == (ENVELOPE.correlation, ENVELOPE.causation, ENVELOPE.trace)
    assert row.occurred_at == ENVELOPE.occurred_at
    assert all(mention.sequence == 7 for mention in history.mentions)


@pytest.mark.parametrize(
    "tag",
    [
        "replica.placed.v1",
        "replica.drain_started.v1",
        "model.placement_refused.v1",
        "model.scaled.v1",
        "model.declared_unsatisfiable.v1",
    ],
)
def test_every_decision_is_found_by_the_id_of_its_event(tag: str) -> None:
    """H2."""
    history = History()
    history.add(*recorded(tag), Fleet())
    (row,) = history.decisions
    assert (row.id, row.sequence, row.basis, row.body) == ("c-1.0", 7, 41, SAMPLES[tag].decision)  # type: ignore[union-attr]


def test_what_a_rival_wrote_is_left_out() -> None:
    history = History()
    one, body = recorded("replica.placed.v1")
    history.add(one, body, Fleet())
    assert history.after(6) == history
    assert history.after(7) == History()


def test_a_text_fits_its_column() -> None:
    assert column_text("a\0b" + "x" * 1_000) == "a\N{REPLACEMENT CHARACTER}b" + "x" * (COLUMN_CHARACTERS_MAX - 3)
