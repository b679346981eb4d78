"""The builders of histories fold: a test that starts from one starts from something that can happen."""

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.node import NodeCordoned
from modelyard_projections.fleet import Draining, Fleet, Ready
from tests.support.given import GIB, a_drain, a_model, a_ready_replica, a_stop, an_approved_node, given


def test_an_approved_node_serves_a_ready_replica() -> None:
    fleet = given(*an_approved_node(gpus=2), *a_model(), *a_ready_replica(vram={1: 2 * GIB})).fleet
    assert fleet.nodes[NodeName("n1")].takes_replicas
    assert fleet.nodes[NodeName("n1")].reserved == {1: 2 * GIB}
    assert isinstance(fleet.replicas[ReplicaId("r-1")].phase, Ready)


def test_a_drained_replica_is_asked_to_stop() -> None:
    fleet = given(*an_approved_node(), *a_model(), *a_ready_replica(), *a_drain(), *a_stop()).fleet
    phase = fleet.replicas[ReplicaId("r-1")].phase
    assert isinstance(phase, Draining)
    assert phase.stopping


def _cordon(_fleet: Fleet) -> list[AnyEvent]:
    return [NodeCordoned(node="n1")]


def test_a_decision_that_differs_fails_the_test() -> None:
    with pytest.raises(AssertionError):
        given(*an_approved_node()).when(_cordon).then_nothing()
    with pytest.raises(pytest.fail.Exception):
        given(*an_approved_node()).when(_cordon).then_raises(ValueError)
