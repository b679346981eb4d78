"""In which order nodes are judged and compared: filters as P1 lists them, scores as P2 does.

The order is seen in what a refusal says: it names the first thing that keeps a node out, so that mending that helps.
"""

from itertools import pairwise
from typing import Final

import msgspec
import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.node import NodeApproved, NodeCordoned, NodeLost, NodeRegistered
from modelyard_events.replica import ReplicaLoadFailed
from modelyard_events.selectors import parse_selector
from modelyard_events.spec import ModelSpec
from modelyard_events.telemetry import Heartbeat
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.ending import end
from modelyard_services.policy.memory import Room
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import read
from modelyard_services.policy.scores import Candidate
from tests.support.given import (
    GIB,
    SECOND_NS,
    a_loading_replica,
    a_model,
    a_pending_node,
    a_ready_replica,
    given,
    incarnation_of,
    record,
    some_facts,
)

N1: Final = NodeName("n1")
FAILED: Final = ReplicaId("r-failed")
ORDER: Final = (
    *("type", "admitted", "alive", "schedulable", "selector"),
    *("concurrency_group", "loaded_limit", "disk", "slot", "vram", "backoff"),
)
"""As P1 has them."""


def a_fleet(wrong: frozenset[str]) -> Fleet:
    """One node, with which all of that is wrong."""
    labels = {} if "selector" in wrong else {"tier": "gpu"}
    facts = some_facts(slots=1, labels=labels)
    limit = 1 if "loaded_limit" in wrong else 0
    events: list[AnyEvent] = [
        NodeRegistered(node=N1, node_type="agent" if "type" in wrong else "backend"),
        *a_pending_node(N1, facts)[1:],
        FleetSettingsChanged(settings=Settings(max_loaded_models=limit), changed=("max_loaded_models",)),
        *a_model(spec=ModelSpec(command=("x",), vram=8 * GIB, disk=40 * GIB, concurrency_groups=("g",))),
    ]
    fleet = given(*events).fleet
    held = {0: 20 * GIB} if "vram" in wrong else None
    groups = ("g",) if "concurrency_group" in wrong else ()
    record(fleet, *a_model("other"), *a_ready_replica("r-other", model="other", vram=held, groups=groups))
    if "slot" in wrong:
        record(fleet, *a_ready_replica("r-same"))
    if "backoff" in wrong:
        record(fleet, *a_loading_replica(FAILED, index=3), ReplicaLoadFailed(node=N1, replica=FAILED, detail="boom"))
        record(fleet, *end(fleet, [FAILED], reason="load_failed"))
    if "admitted" not in wrong:
        record(fleet, NodeApproved(node=N1))
    if "schedulable" in wrong:
        record(fleet, NodeCordoned(node=N1))
    if "alive" in wrong:
        record(fleet, NodeLost(node=N1, incarnation=incarnation_of(N1), silent_seconds=60.0, grace_seconds=600.0))
    return fleet


def kept_out_by(wrong: frozenset[str]) -> str | None:
    """The filter that a refusal names; None if it is placed."""
    fleet, demand = a_fleet(wrong), Demand()
    free = GIB if "disk" in wrong else 400 * GIB
    demand.hear_node(Heartbeat(N1, incarnation_of(N1), fleet.sequence, disk_free=free), now_ns=0)
    asked = Request(
        model=ModelName("m"),
        command=CommandId("c-1"),
        now_ns=fleet.time_ns + SECOND_NS,
        selector=parse_selector("tier=gpu"),
    )
    refused = place(fleet, read(fleet, demand, heard_ns=SECOND_NS), asked).refused
    return None if refused is None else refused.message.removeprefix("0/1 nodes: 1 ").split(" ", 1)[0].rstrip(";")


def test_each_thing_that_is_mended_shows_the_next_in_the_rules_order() -> None:
    """P1."""
    assert [kept_out_by(frozenset(ORDER[mended:])) for mended in range(len(ORDER))] == list(ORDER)
    assert kept_out_by(frozenset()) is None


@pytest.mark.parametrize(("first", "second"), list(pairwise(ORDER)))
def test_of_two_reasons_a_node_is_counted_under_the_first(first: str, second: str) -> None:
    """P1, P5: once, so that the counts of a refusal add up to the nodes."""
    assert kept_out_by(frozenset({first, second})) == first
    assert kept_out_by(frozenset({second})) == second


SCORES: Final = ("loading", "replicas_of_model", "in_flight", "free", "node")
"""As P2 has them."""


def a_candidate(**worse: bool) -> Candidate:
    return Candidate(
        node=NodeName("z" if worse.get("node") else "a"),
        loading=int(worse.get("loading", False)),
        replicas_of_model=int(worse.get("replicas_of_model", False)),
        in_flight=int(worse.get("in_flight", False)),
        free=Room({0: GIB}, GIB if worse.get("free") else 2 * GIB),
    )


@pytest.mark.parametrize("deciding", range(len(SCORES)))
def test_a_node_that_is_better_by_an_earlier_score_wins_whatever_the_later_ones_say(deciding: int) -> None:
    """P2."""
    worse_later = a_candidate(**dict.fromkeys(SCORES[deciding + 1 :], True))
    worse_here = a_candidate(**{SCORES[deciding]: True})
    assert worse_later.rank(binpack=False) < worse_here.rank(binpack=False)


def test_binpack_turns_free_memory_round_and_nothing_else() -> None:
    """P2, P6."""
    full, empty = a_candidate(free=True), a_candidate()
    assert full.rank(binpack=True) < empty.rank(binpack=True)
    for score in SCORES:
        if score != "free":
            assert a_candidate().rank(binpack=True) < a_candidate(**{score: True}).rank(binpack=True)


def test_whether_a_node_has_the_model_counts_and_not_how_often() -> None:
    """P2: no replica of it yet is better than one; two are no worse than one where fewer requests are."""
    twice_idle = msgspec.structs.replace(a_candidate(), replicas_of_model=2)
    once_busy = a_candidate(replicas_of_model=True, in_flight=True)
    assert twice_idle.rank(binpack=False) < once_busy.rank(binpack=False)
