"""From a node's events to processes, purely (rule W1)."""

import itertools

import pytest
from hypothesis import given as everything
from hypothesis import strategies as st

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.node import NodeRemoved
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.ending import end
from modelyard_services.policy.intent import remove
from modelyard_services.worker.agent.steps import Start, Step, Stop, TellStopped, steps
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

N1, R1, STRAY = NodeName("n1"), ReplicaId("r-1"), ReplicaId("r-stray")


def fleet_with(*events: AnyEvent) -> Fleet:
    return given(*an_approved_node(slots=4), *a_model(), *events).fleet


def asked(fleet: Fleet, *running: ReplicaId) -> list[str]:
    """The steps as words."""
    return [_in_words(step) for step in steps(fleet, N1, running=running)]


def _in_words(step: Step) -> str:
    replica = step.replica.id if isinstance(step, Start) else step.replica
    return f"{type(step).__name__} {replica}"


@pytest.mark.parametrize(
    ("history", "absent", "running"),
    [
        (a_placed_replica(), ["Start r-1"], []),
        (a_loading_replica(), [], []),
        (a_ready_replica(), [], []),
        ([*a_ready_replica(), *a_drain()], [], []),
        ([*a_ready_replica(), *a_drain(), *a_stop()], ["TellStopped r-1"], ["Stop r-1"]),
    ],
    ids=["placed", "loading", "ready", "draining", "stopping"],
)
def test_each_phase_asks_for_what_is_missing(history: list[AnyEvent], absent: list[str], running: list[str]) -> None:
    """W1, R8: a draining replica serves on until its stop is asked for; nothing is restarted here (W5)."""
    fleet = fleet_with(*history)
    assert asked(fleet) == absent
    assert asked(fleet, R1) == running


def test_a_newcomer_starts_only_once_its_victim_has_ended() -> None:
    """P3."""
    fleet = fleet_with(*a_ready_replica("r-1"), *a_drain("r-1"), *a_placed_replica("r-2", index=1, waits_for=(R1,)))
    assert asked(fleet, R1) == []
    ended = fleet_with(
        *a_ready_replica("r-1"),
        *a_drain("r-1"),
        *a_placed_replica("r-2", index=1, waits_for=(R1,)),
        *end(fleet, [R1], reason="evicted_lru"),
    )
    assert asked(ended) == ["Start r-2"]


def test_what_nobody_believes_in_is_stopped_before_anything_starts() -> None:
    """C6, X26."""
    assert asked(fleet_with(*a_placed_replica()), STRAY) == ["Stop r-stray", "Start r-1"]


def test_everything_stops_on_a_node_that_was_removed() -> None:
    """N13, X10."""
    fleet = fleet_with(*a_ready_replica())
    gone = fleet_with(*a_ready_replica(), *remove(fleet, node=N1))
    assert any(isinstance(event, NodeRemoved) for event in remove(fleet, node=N1))
    assert asked(gone, R1, STRAY) == ["Stop r-1", "Stop r-stray"]


PHASES = ("placed", "loading", "ready", "draining", "stopping")


def _history(replica: str, index: int, phase: str) -> list[AnyEvent]:
    match phase:
        case "placed":
            return a_placed_replica(replica, index=index)
        case "loading":
            return a_loading_replica(replica, index=index)
        case "ready":
            return a_ready_replica(replica, index=index)
        case "draining":
            return [*a_ready_replica(replica, index=index), *a_drain(replica)]
        case _:
            return [*a_ready_replica(replica, index=index), *a_drain(replica), *a_stop(replica)]


@everything(
    phases=st.lists(st.sampled_from(PHASES), max_size=4), alive=st.sets(st.integers(0, 3)), strays=st.booleans()
)
def test_taking_the_steps_once_leaves_nothing_but_ends_to_tell(
    phases: list[str], alive: set[int], *, strays: bool
) -> None:
    """W1: it converges from any state of the log and of the processes, and asks for each replica once."""
    histories = [_history(f"r-{index}", index, phase) for index, phase in enumerate(phases)]
    fleet = fleet_with(*itertools.chain.from_iterable(histories))
    running = {ReplicaId(f"r-{index}") for index in alive} | ({STRAY} if strays else set())
    first = steps(fleet, N1, running=running)
    named = [step.replica.id if isinstance(step, Start) else step.replica for step in first]
    assert len(named) == len(set(named))
    for step in first:
        if isinstance(step, Start):
            running.add(step.replica.id)
        else:
            running.discard(step.replica)
    assert all(isinstance(step, TellStopped) for step in steps(fleet, N1, running=running))
    assert running <= fleet.replicas.keys()
    assert not any(isinstance(step, Stop) for step in steps(fleet, N1, running=running))
