"""How replicas end: one way, with every event it takes (rules R7, R8)."""

from modelyard_events.ids import ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelReplicaDraining, ModelReplicaEnded
from modelyard_events.replica import ReplicaDrainStarted, ReplicaStopRequested, ReplicaUnloaded
from modelyard_events.reservation import ReservationReleased
from modelyard_services.policy.ending import begin_drain, end, request_stop
from tests.support.given import (
    a_drain,
    a_loading_replica,
    a_model,
    a_placed_replica,
    a_ready_replica,
    a_stop,
    an_approved_node,
    given,
)

R1, R2 = ReplicaId("r-1"), ReplicaId("r-2")


def test_a_ready_replica_drains_and_its_model_counts_it_no_more() -> None:
    """R8: no leases from the moment of the event; the model learns of it in the same append."""
    given(*an_approved_node(), *a_model(), *a_ready_replica()).when(
        lambda fleet: begin_drain(fleet, [R1], reason="requested", deadline_seconds=60)
    ).then(
        ReplicaDrainStarted(node="n1", replicas=(R1,), reason="requested", deadline_seconds=60),
        ModelReplicaDraining(model="m", replicas=(R1,), reason="requested"),
    )


def test_a_replica_without_a_process_ends_at_once() -> None:
    given(*an_approved_node(), *a_model(), *a_placed_replica()).when(
        lambda fleet: begin_drain(fleet, [R1], reason="scaled_down", deadline_seconds=60)
    ).then(
        ReplicaUnloaded(node="n1", replicas=(R1,), reason="scaled_down"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"),)),
        ModelReplicaEnded(model="m", replicas=(R1,), reason="scaled_down"),
    )


def test_a_replica_named_twice_ends_once() -> None:
    """R3, I7: its reservation is released exactly once."""
    history = given(*an_approved_node(), *a_model(), *a_ready_replica())
    history.when(lambda fleet: end(fleet, [R1, R1], reason="requested")).then(
        ReplicaUnloaded(node="n1", replicas=(R1,), reason="requested"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"),)),
        ModelReplicaEnded(model="m", replicas=(R1,), reason="requested"),
    )
    history.when(lambda fleet: end(fleet, [R1], reason="node_lost")).then_nothing()


def test_draining_what_drains_already_is_nothing() -> None:
    given(*an_approved_node(), *a_model(), *a_ready_replica(), *a_drain()).when(
        lambda fleet: begin_drain(fleet, [R1, ReplicaId("r-gone")], reason="drained", deadline_seconds=1)
    ).then_nothing()


def test_a_stop_is_asked_once_and_may_be_forced_later() -> None:
    history = [*an_approved_node(), *a_model(), *a_loading_replica(), *a_drain()]
    given(*history).when(lambda fleet: request_stop(fleet, [R1])).then(ReplicaStopRequested(node="n1", replicas=(R1,)))
    given(*history, *a_stop()).when(lambda fleet: request_stop(fleet, [R1])).then_nothing()
    given(*history, *a_stop()).when(lambda fleet: request_stop(fleet, [R1], forced=True)).then(
        ReplicaStopRequested(node="n1", replicas=(R1,), forced=True)
    )


def test_the_reason_of_a_drain_stands_at_its_end() -> None:
    """R7: that the process stopped as asked doesn't overwrite why it was asked."""
    events = (
        given(*an_approved_node(), *a_model(), *a_ready_replica(), *a_drain(reason="drained"))
        .when(lambda fleet: end(fleet, [R1], reason="requested"))
        .events
    )
    assert [event.reason for event in events if isinstance(event, ReplicaUnloaded)] == ["drained"]


def test_a_lost_node_ends_its_replicas_for_that_reason_whatever_they_were_doing() -> None:
    events = (
        given(*an_approved_node(), *a_model(), *a_ready_replica(), *a_drain(reason="drained"))
        .when(lambda fleet: end(fleet, [R1], reason="node_lost"))
        .events
    )
    assert [event.reason for event in events if isinstance(event, ReplicaUnloaded)] == ["node_lost"]


def test_ending_one_replica_leaves_its_sibling_alone() -> None:
    """X4: slots, reservations and counts of the sibling stay."""
    history = given(*an_approved_node(slots=2), *a_model(), *a_ready_replica("r-1"), *a_ready_replica("r-2", index=1))
    history.when(lambda fleet: end(fleet, [R1], reason="evicted_lru")).then(
        ReplicaUnloaded(node="n1", replicas=(R1,), reason="evicted_lru"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"),)),
        ModelReplicaEnded(model="m", replicas=(R1,), reason="evicted_lru"),
    )
    assert list(history.fleet.replicas) == [R2]
    assert list(history.fleet.reservations) == ["v-2"]
    node, model = history.fleet.nodes[NodeName("n1")], history.fleet.models[ModelName("m")]
    assert node.slots == {"m": {1: R2}}
    assert list(node.replicas) == list(model.replicas) == [R2]


def test_ends_over_several_nodes_and_models_come_in_one_list() -> None:
    history = given(
        *an_approved_node("n1"),
        *an_approved_node("n2"),
        *a_model("a"),
        *a_model("b"),
        *a_ready_replica("r-1", node="n1", model="a"),
        *a_ready_replica("r-2", node="n2", model="b"),
    )
    events = history.when(lambda fleet: end(fleet, [R1, R2], reason="requested")).events
    assert len(events) == 6
    assert not history.fleet.replicas
    assert not history.fleet.reservations
    assert end(history.fleet, [R1, R2], reason="requested") == []
