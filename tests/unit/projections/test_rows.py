"""Rows and their canonical hash: all of the state, the same however it was reached (I9)."""

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from modelyard_events.ids import LabelKey, ModelName, NodeName, ReplicaId, ReservationId, Revision
from modelyard_events.model import ModelPlacementRefused, ModelScheduleSet
from modelyard_events.node import NodeLabelsChanged, NodeVramBudgetOverridden
from modelyard_events.sizes import Fraction
from modelyard_events.spec import Autoscale, Schedule
from modelyard_projections import tables
from modelyard_projections.fleet import Fleet, Ready
from modelyard_projections.hashing import StateHash, encode_row, without_nul
from modelyard_projections.history import DecisionRow, EventRow, MentionRow
from modelyard_projections.rows import (
    ROW_TYPES,
    LabelRow,
    label_rows,
    model_rows,
    node_row,
    replica_row,
    reservation_row,
    rows_of,
    schedule_row,
)
from tests.support.given import GIB, a_model, a_ready_replica, an_approved_node
from tests.support.given import given as given_events
from tests.support.histories import DECISION

READY = [*an_approved_node("n1", labels={"zone": "a", "tier": "cpu"}), *a_model("m"), *a_ready_replica("r-1")]


@pytest.fixture
def fleet() -> Fleet:
    return given_events(*READY, NodeLabelsChanged(node="n1", changed={LabelKey("tier"): "gpu"})).fleet


def test_a_node_spreads_its_facets_and_figures_over_columns(fleet: Fleet) -> None:
    row = node_row(fleet.nodes[NodeName("n1")])
    assert (row.admission, row.liveness, row.intent, row.takes_replicas) == ("approved", "alive", "schedulable", True)
    assert (row.vram_total, row.vram_reserved, row.vram_free, row.replicas) == (24 * GIB, GIB, 23 * GIB, 1)


def test_a_label_shows_its_owner_and_what_the_other_one_set(fleet: Fleet) -> None:
    """N5: the operator's value wins, and both are kept."""
    rows = {row.key: row for row in label_rows(fleet.nodes[NodeName("n1")])}
    assert rows["tier"] == LabelRow(NodeName("n1"), "tier", "gpu", "operator", "cpu", "gpu")
    assert rows["zone"] == LabelRow(NodeName("n1"), "zone", "a", "worker", "a", None)
    assert rows["node.name"].owner == "system"


def test_a_replica_and_its_reservation_name_each_other(fleet: Fleet) -> None:
    replica = replica_row(fleet.replicas[ReplicaId("r-1")])
    reservation = reservation_row(fleet.reservations[ReservationId("v-1")])
    assert (replica.phase, replica.reservation, reservation.replica) == ("ready", "v-1", "r-1")
    assert reservation.vram == GIB


def test_a_schedule_is_a_row_of_its_own_and_goes_with_its_model() -> None:
    schedule = Schedule(mode=Autoscale(1, 3))
    fleet = given_events(ModelScheduleSet(model="m", schedule=schedule, source="api")).fleet
    model = fleet.models[ModelName("m")]
    assert [row.table for row in model_rows(model)] == ["models", "schedules"]
    assert model.schedule is not None
    assert (schedule_row(model.name, model.schedule).min_replicas, model.spec) == (1, None)


def test_every_column_of_every_row_is_a_column_of_its_table() -> None:
    for name, kind in ROW_TYPES.items():
        table = tables.metadata.tables[name]
        assert tuple(table.c.keys()) == kind.__struct_fields__
        assert tuple(column.name for column in table.primary_key) == kind.primary_key
    for name, record in {"events": EventRow, "mentions": MentionRow, "decisions": DecisionRow}.items():
        assert tuple(tables.metadata.tables[name].c.keys()) == record.__struct_fields__


def test_any_change_of_the_state_changes_the_hash(fleet: Fleet) -> None:
    """Also of what has no column: the whole state is in the row."""
    before = StateHash.of(fleet).text
    replica = fleet.replicas[ReplicaId("r-1")]
    assert isinstance(replica.phase, Ready)
    process = msgspec.structs.replace(replica.phase.process, started_at=0.25)
    replica.phase = msgspec.structs.replace(replica.phase, process=process)
    assert StateHash.of(fleet).text != before


def test_a_row_that_didnt_change_isnt_written_again(fleet: Fleet) -> None:
    kept = StateHash.of(fleet)
    fleet.nodes[NodeName("n1")].sequence += 1
    changes = kept.update(fleet, [("node", "n1")])
    assert {table: len(rows) for table, rows in changes.changed.items()} == {"nodes": 1}


def test_rows_of_an_entity_that_left_vanish_with_all_that_was_its_own(fleet: Fleet) -> None:
    kept = StateHash.of(fleet)
    labels = len(fleet.nodes[NodeName("n1")].labels)
    del fleet.nodes[NodeName("n1")]
    changes = kept.update(fleet, [("node", "n1")])
    assert {table: len(keys) for table, keys in changes.vanished.items()} == {"nodes": 1, "labels": labels}
    assert list(rows_of(fleet, ("node", "n1"))) == []


@given(st.dictionaries(st.integers(-1, 99), st.integers(0, 2**60), min_size=1), st.floats(0.01, 1))
@example({10: 1, 9: 2, -1: 3}, 1.0)
def test_a_row_reads_back_from_its_json_as_the_same_row(reserved: dict[int, int], share: float) -> None:
    """Numbers keep their kind: a database gives 1 back for 1.0, and texts for the keys of a map."""
    fleet = given_events(*READY, NodeVramBudgetOverridden(node="n1", vram_budget=Fraction(share))).fleet
    node = fleet.nodes[NodeName("n1")]
    node.reserved = reserved
    body = encode_row(node_row(node))
    as_postgresql = msgspec.json.encode(_whole_numbers(msgspec.json.decode(body)))
    assert encode_row(msgspec.json.decode(as_postgresql, type=ROW_TYPES["nodes"])) == body


@given(st.lists(st.sampled_from(["\0", "\\", "u0000", "x", '"', "\\u0000"])))
def test_only_a_real_nul_is_replaced(parts: list[str]) -> None:
    text = "".join(parts)
    body = without_nul(msgspec.json.encode({"text": text}))
    assert msgspec.json.decode(body) == {"text": text.replace("\0", "\N{REPLACEMENT CHARACTER}")}


def test_the_last_refusal_is_a_column() -> None:
    revision = Revision("0123456789ab")
    refused = ModelPlacementRefused(model="m", kind="exhausted", revision=revision, decision=DECISION)
    fleet = given_events(*a_model("m"), refused).fleet
    (row,) = model_rows(fleet.models[ModelName("m")])
    assert row.refusal == "exhausted"  # type: ignore[attr-defined]


def _whole_numbers(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole_numbers(one) for key, one in value.items()}
    return [_whole_numbers(one) for one in value] if isinstance(value, list) else value
