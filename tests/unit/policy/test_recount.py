"""A decision's full account: what it was measured by, and when it can't be had (rule H2)."""

import msgspec
import pytest

from modelyard_events.decision import Decision
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.replica import ReplicaPlaced
from modelyard_services.errors import ConflictError
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import LEFT_OUT, NodeReading, Readings, expand
from modelyard_services.policy.recount import Recount, recount
from tests.support.given import GIB, START_NS, Given, a_model, a_ready_replica, an_approved_node, given, some_spec

MODEL = ModelName("m")

MEASURED = Readings(
    nodes={
        NodeName("n1"): NodeReading({0: 7 * GIB}, {ReplicaId("r-1"): {0: GIB}}, disk_free=10 * GIB, folded=3),
        NodeName("n2"): NodeReading({0: 2 * GIB}, {}, folded=2),
    },
    in_flight={ReplicaId("r-1"): 3},
)


def a_fleet() -> Given:
    return given(
        *an_approved_node("n1"),
        *an_approved_node("n2"),
        *a_model("other"),
        *a_ready_replica("r-1", model="other", node="n1"),
        *a_model(spec=some_spec(vram=4 * GIB)),
    )


def decided(history: Given, readings: Readings) -> Decision:
    request = Request(model=MODEL, command=CommandId("c-1"), now_ns=START_NS)
    event = place(history.fleet, readings, request).events[0]
    assert isinstance(event, ReplicaPlaced)
    assert event.decision is not None
    return event.decision


def recounted(history: Given, decision: Decision) -> Recount:
    return recount(history.fleet, decision, MODEL)


def test_the_account_is_told_with_the_measurements_of_then() -> None:
    """H2: free memory and requests in flight are the decision's own, whatever is measured now."""
    history = a_fleet()
    found = recounted(history, decided(history, MEASURED))
    assert (found.measured, found.agrees) == (True, True)
    chosen, rejected = found.nodes
    assert (chosen.node, chosen.rejection) == ("n1", None)
    assert chosen.scores == {"loading": 0, "replicas_of_model": 0, "in_flight": 3, "vram_free": 7 * GIB}
    assert rejected.rejection is not None
    assert (rejected.rejection.filter, rejected.rejection.figure) == ("vram", 2 * GIB)


def test_measurements_that_were_left_out_are_told_to_be_unknown() -> None:
    """H2: without them n2 would take it, and the account says that this isn't what was decided."""
    history = a_fleet()
    decision = msgspec.structs.replace(decided(history, MEASURED), telemetry=LEFT_OUT)
    found = recounted(history, decision)
    assert (found.measured, found.agrees) == (False, False)
    assert [each.rejection for each in found.nodes] == [None, None]


def test_a_column_gives_back_what_it_was_made_of() -> None:
    found = expand(MEASURED.column)
    assert found is not None
    assert (found.nodes, found.in_flight) == (MEASURED.nodes, MEASURED.in_flight)


@pytest.mark.parametrize("column", ["", "no column", "0000000000"])
def test_a_column_that_is_none_is_refused(column: str) -> None:
    with pytest.raises(ValueError, match="telemetry can't be read"):
        expand(column)


def test_another_policys_decision_is_left_to_its_release() -> None:
    """H2: by that policy version, never by another."""
    history = a_fleet()
    older = msgspec.structs.replace(decided(history, MEASURED), policy="placement/1")
    with pytest.raises(ConflictError, match="placement/1"):
        recounted(history, older)


def test_a_decision_that_judged_no_nodes_says_so() -> None:
    history = a_fleet()
    scaling = Decision("scaling", "one more", decided(history, MEASURED).policy, history.fleet.sequence)
    with pytest.raises(ConflictError, match="figures are all of it"):
        recounted(history, scaling)


def test_the_wrong_moment_is_no_basis() -> None:
    history = a_fleet()
    later = msgspec.structs.replace(decided(history, MEASURED), basis=1)
    with pytest.raises(AssertionError, match="decided on sequence 1"):
        recounted(history, later)
