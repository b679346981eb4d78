"""T1 as sentences: which replica is routable, and which of them goes first."""

from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.node import NodeCordoned, NodeDrainStarted, NodeLost, NodeRecovered, NodeRejected
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.routing import Candidate, candidate_of, choose
from tests.support.given import GIB, a_drain, a_loading_replica, a_model, a_ready_replica, an_approved_node, given
from tests.support.given import incarnation_of as life

LOST = NodeLost(node="n1", incarnation=life("n1"), silent_seconds=60, grace_seconds=600)


def candidates(fleet: Fleet) -> list[Candidate]:
    found = [candidate_of(fleet, replica) for replica in fleet.replicas]
    return [candidate for candidate in found if candidate is not None]


def two_replicas() -> list[Candidate]:
    return candidates(
        given(
            *an_approved_node("n1"),
            *an_approved_node("n2"),
            *a_model(),
            *a_ready_replica("r-1", node="n1"),
            *a_ready_replica("r-2", node="n2"),
        ).fleet
    )


def chosen(options: list[Candidate]) -> str:
    choice = choose(options)
    assert choice is not None
    return choice.replica


def test_the_least_busy_replica_goes_first_counting_every_router() -> None:
    one, two = two_replicas()
    one.own, two.others, two.vram_free = 1, 2, one.vram_free + GIB
    assert chosen([one, two]) == "r-1"


def test_among_equally_busy_ones_the_longest_unused_goes_first() -> None:
    one, two = two_replicas()
    one.last_used_ns, two.last_used_ns, two.vram_free = 7, 8, one.vram_free + GIB
    assert chosen([one, two]) == "r-1"


def test_then_the_one_with_most_free_vram_then_by_node_and_index() -> None:
    one, two = two_replicas()
    assert chosen([two, one]) == "r-1"
    two.vram_free += 1
    assert chosen([one, two]) == "r-2"


def test_ties_go_to_the_first_node_by_name_and_its_lowest_index_whatever_the_replicas_ids_are() -> None:
    """T1: ids are random, so a choice by them would be one nobody can foresee."""
    one, two = two_replicas()
    one.node, two.node = NodeName("n2"), NodeName("n1")
    assert chosen([one, two]) == "r-2"
    one.node, one.replica_index = two.node, two.replica_index + 1
    assert chosen([one, two]) == "r-2"


def test_a_full_shut_or_avoided_replica_is_passed_over() -> None:
    """T7, T4."""
    one, two = two_replicas()
    one.max_concurrency, one.own, two.own = 1, 1, 5
    assert chosen([one, two]) == "r-2"
    one.max_concurrency, one.shut = None, True
    assert chosen([one, two]) == "r-2"
    one.shut = False
    assert choose([one, two], avoid={ReplicaId("r-1"), ReplicaId("r-2")}) is None


def test_only_ready_replicas_are_routable() -> None:
    """T1, R8: from the moment of a drain nothing new goes there."""
    history = given(*an_approved_node(slots=2), *a_model(), *a_loading_replica("r-1"))
    assert candidates(history.fleet) == []
    drained = given(*an_approved_node(), *a_model(), *a_ready_replica("r-1"), *a_drain("r-1"))
    assert candidates(drained.fleet) == []


def test_a_cordoned_or_draining_node_keeps_serving_until_its_replicas_drain() -> None:
    """N10."""
    ready = [*an_approved_node(), *a_model(), *a_ready_replica("r-1")]
    for intent in (NodeCordoned(node="n1"), NodeDrainStarted(node="n1", deadline_seconds=60)):
        assert [candidate.node for candidate in candidates(given(*ready, intent).fleet)] == [NodeName("n1")]


def test_a_lost_or_rejected_node_is_unroutable_at_once() -> None:
    """N9, N4."""
    ready = [*an_approved_node(), *a_model(), *a_ready_replica("r-1")]
    assert candidates(given(*ready, LOST).fleet) == []
    assert candidates(given(*ready, NodeRejected(node="n1")).fleet) == []
    recovered = NodeRecovered(node="n1", incarnation=life("n1"))
    assert len(candidates(given(*ready, LOST, recovered).fleet)) == 1
