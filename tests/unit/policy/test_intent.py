"""Admission, cordon, drain, resume and removal, as an operator decides them."""

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import CommandId, IncarnationId, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelReplicaDraining, ModelReplicaEnded
from modelyard_events.node import (
    NodeApproved,
    NodeCordoned,
    NodeDeparted,
    NodeDrainFinished,
    NodeDrainStarted,
    NodeIncarnationStarted,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeOverrideCleared,
    NodeRecovered,
    NodeRejected,
    NodeRemoved,
    NodeResumed,
    NodeVramBudgetOverridden,
)
from modelyard_events.replica import ReplicaDrainStarted, ReplicaUnloaded
from modelyard_events.reservation import OperatorHolder, ReservationReleased
from modelyard_events.sizes import Fraction
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ConflictError, NotFoundError
from modelyard_services.policy import intent
from modelyard_services.policy.capacity import reserve
from modelyard_services.policy.identity import reservation_id
from modelyard_services.policy.tokens import digest_of
from tests.support.given import (
    GIB,
    Decide,
    a_model,
    a_pending_node,
    a_placed_replica,
    a_ready_replica,
    an_approved_node,
    given,
    incarnation_of,
    record,
    some_facts,
)

N1 = NodeName("n1")


def approve(fleet: Fleet) -> list[AnyEvent]:
    return intent.approve(fleet, node=N1)


def reject(fleet: Fleet) -> list[AnyEvent]:
    return intent.reject(fleet, node=N1, reason="not ours")


def cordon(fleet: Fleet) -> list[AnyEvent]:
    return intent.cordon(fleet, node=N1)


def uncordon(fleet: Fleet) -> list[AnyEvent]:
    return intent.uncordon(fleet, node=N1)


def drain(fleet: Fleet) -> list[AnyEvent]:
    return intent.drain(fleet, node=N1)


def drain_finished(fleet: Fleet) -> list[AnyEvent]:
    return intent.drain_finished(fleet, node=N1)


def resume(fleet: Fleet) -> list[AnyEvent]:
    return intent.resume(fleet, node=N1)


def remove(fleet: Fleet) -> list[AnyEvent]:
    return intent.remove(fleet, node=N1)


@pytest.mark.parametrize("decide", [approve, reject, cordon, uncordon, drain, drain_finished, resume, remove])
def test_a_node_that_does_not_exist_is_named_in_the_refusal(decide: Decide) -> None:
    """X28."""
    given().when(decide).then_raises(NotFoundError, "'n1'")


def test_an_approve_command_admits_a_pending_node() -> None:
    """N4."""
    given(*a_pending_node()).when(approve).then(NodeApproved(node="n1"))


def test_an_approved_node_is_not_approved_again() -> None:
    """I11."""
    given(*an_approved_node()).when(approve).then_nothing()


def test_a_rejected_node_can_be_approved_after_all() -> None:
    given(*a_pending_node(), NodeRejected(node="n1")).when(approve).then(NodeApproved(node="n1"))


def test_a_pending_node_that_was_lost_and_recovered_is_still_pending() -> None:
    """N1, N4, X9: pending, lost, alive doesn't count as approved; nor does a resume (N10)."""
    life = incarnation_of("n1")
    history: list[AnyEvent] = [
        *a_pending_node(),
        NodeLost(node="n1", incarnation=life, silent_seconds=60, grace_seconds=600),
        NodeRecovered(node="n1", incarnation=life),
        NodeCordoned(node="n1"),
        NodeResumed(node="n1"),
    ]
    state = given(*history).fleet.nodes[N1]
    assert state.admission == "pending"
    assert not state.takes_replicas


LIFE = incarnation_of("n1")
LOST = NodeLost(node="n1", incarnation=LIFE, silent_seconds=60, grace_seconds=600)
RESTARTED = NodeIncarnationStarted(
    node="n1", incarnation=IncarnationId("n1-life-2"), facts=some_facts(), secret_digest=digest_of("state directory")
)


@pytest.mark.parametrize(
    ("events", "facet"),
    [
        ([NodeApproved(node="n1")], "admission"),
        ([NodeRejected(node="n1")], "admission"),
        ([LOST], "liveness"),
        ([NodeDeparted(node="n1", incarnation=LIFE)], "liveness"),
        ([LOST, NodeRecovered(node="n1", incarnation=LIFE)], "liveness"),
        ([RESTARTED], "liveness"),
        ([NodeDrainStarted(node="n1", deadline_seconds=60)], "intent"),
        ([NodeResumed(node="n1")], "intent"),
        ([NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=7)], "capacity"),
        ([NodeVramBudgetOverridden(node="n1", vram_budget=Fraction(0.5))], "capacity"),
        ([NodeOverrideCleared(node="n1", override="max_replicas_per_model")], "capacity"),
    ],
)
def test_each_event_of_a_node_changes_one_facet_and_none_follows_from_another(
    events: list[AnyEvent], facet: str
) -> None:
    """N1: admission, liveness, intent and capacity, each a fold of its own events."""
    overridden = NodeMaxReplicasOverridden(node="n1", max_replicas_per_model=3)
    node = given(*a_pending_node(), NodeCordoned(node="n1"), overridden).fleet

    def facets() -> dict[str, object]:
        state = node.nodes[N1]
        capacity = (state.max_replicas_per_model, state.budget, dict(state.devices))
        return {"admission": state.admission, "liveness": state.liveness, "intent": state.intent, "capacity": capacity}

    before = facets()
    record(node, *events)
    after = facets()
    assert {name for name in before if before[name] != after[name]} == {facet}


def test_rejecting_a_node_drains_what_it_serves() -> None:
    given(*an_approved_node(), *a_model(), *a_ready_replica()).when(reject).then(
        NodeRejected(node="n1", reason="not ours"),
        ReplicaDrainStarted(node="n1", replicas=(ReplicaId("r-1"),), reason="drained", deadline_seconds=600.0),
        ModelReplicaDraining(model="m", replicas=(ReplicaId("r-1"),), reason="drained"),
    )


def test_a_rejected_node_is_not_rejected_again() -> None:
    given(*a_pending_node(), NodeRejected(node="n1")).when(reject).then_nothing()


def test_a_cordoned_node_keeps_what_it_serves() -> None:
    """N10."""
    given(*an_approved_node(), *a_model(), *a_ready_replica()).when(cordon).then(NodeCordoned(node="n1"))


def test_a_cordon_on_a_draining_node_changes_nothing() -> None:
    draining = NodeDrainStarted(node="n1", deadline_seconds=60)
    given(*an_approved_node(), draining).when(cordon).then_nothing()


def test_uncordon_undoes_a_cordon() -> None:
    given(*an_approved_node(), NodeCordoned(node="n1")).when(uncordon).then(NodeResumed(node="n1"))


def test_uncordon_does_not_undo_a_drain_in_passing() -> None:
    draining = NodeDrainStarted(node="n1", deadline_seconds=60)
    given(*an_approved_node(), draining).when(uncordon).then_raises(ConflictError, "resume")


def test_a_drain_takes_its_deadline_from_the_settings() -> None:
    """N10: ten minutes by default."""
    given(*an_approved_node()).when(drain).then(NodeDrainStarted(node="n1", deadline_seconds=600.0))


def test_a_drain_asked_for_again_keeps_its_deadline() -> None:
    """I11."""
    draining = NodeDrainStarted(node="n1", deadline_seconds=60)
    given(*an_approved_node(), draining).when(drain).then_nothing()


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 8 * 86_400.0])
def test_a_drain_deadline_out_of_range_is_refused(seconds: float) -> None:
    given(*an_approved_node()).when(lambda fleet: intent.drain(fleet, node=N1, deadline_seconds=seconds)).then_raises(
        InvalidValueError, "deadline_seconds"
    )


def test_resume_undoes_a_drain() -> None:
    """N10."""
    draining = NodeDrainStarted(node="n1", deadline_seconds=60)
    given(*an_approved_node(), draining).when(resume).then(NodeResumed(node="n1"))


def test_a_schedulable_node_has_nothing_to_resume() -> None:
    given(*an_approved_node()).when(resume).then_nothing()


def test_a_drain_finishes_once_the_last_replica_has_ended() -> None:
    """N10."""
    draining = NodeDrainStarted(node="n1", deadline_seconds=60)
    history = [*an_approved_node(), draining]
    given(*history).when(drain_finished).then(NodeDrainFinished(node="n1"))
    given(*history, NodeDrainFinished(node="n1")).when(drain_finished).then_nothing()
    given(*an_approved_node()).when(drain_finished).then_nothing()


def test_a_drain_is_not_finished_while_a_replica_lives() -> None:
    """X11."""
    history = [*an_approved_node(), *a_model(), *a_ready_replica(), NodeDrainStarted(node="n1", deadline_seconds=60)]
    given(*history).when(drain_finished).then_nothing()


def test_removal_ends_replicas_and_every_reservation_in_one_append() -> None:
    """N13, R7, I7: operators' reservations too."""
    training = reserve(
        given(*an_approved_node()).fleet, node=N1, vram={0: GIB}, holder=OperatorHolder("ml"), command=CommandId("c")
    )
    operators = reservation_id(CommandId("c"), 0)
    history = [*an_approved_node(slots=2), *training, *a_model(), *a_ready_replica(), *a_placed_replica("r-2", index=1)]
    replicas = (ReplicaId("r-1"), ReplicaId("r-2"))
    given(*history).when(remove).then(
        ReplicaUnloaded(node="n1", replicas=replicas, reason="node_removed"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"), ReservationId("v-2"))),
        ModelReplicaEnded(model="m", replicas=replicas, reason="node_removed"),
        ReservationReleased(node="n1", reservations=(operators,)),
        NodeRemoved(node="n1"),
    )


def test_nothing_of_a_removed_node_is_left() -> None:
    """N13, X10."""
    history = given(*an_approved_node(), *a_model(), *a_ready_replica())
    assert history.when(remove).events
    fleet = history.fleet
    assert (fleet.nodes, fleet.replicas, fleet.reservations) == ({}, {}, {})


def test_a_departed_node_without_replicas_is_removed_alone() -> None:
    departed = NodeDeparted(node="n1", incarnation=IncarnationId("n1-life-1"))
    given(*an_approved_node(), departed).when(remove).then(NodeRemoved(node="n1"))
