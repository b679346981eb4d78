"""Whose story an event of a report belongs to (rule H1)."""

from datetime import UTC, datetime

import msgspec

from modelyard_events.envelope import Actor, AnyEvent, Envelope
from modelyard_events.ids import CommandId, ReplicaId, ReservationId
from modelyard_events.model import ModelReplicaReady
from modelyard_events.node import NodeDeparted
from modelyard_events.replica import ProcessExit, ReplicaCrashed, ReplicaUnloaded
from modelyard_events.reservation import ReservationReleased, ReservationResized
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.ending import end
from modelyard_services.policy.stories import as_it_occurred, of_its_replica
from tests.support.given import a_drain, a_model, a_placed_replica, a_ready_replica, a_stop, an_approved_node, given

REPORT = Envelope(Actor("worker", "n1"), CommandId("report-1"), "report-1")


def two_replicas() -> Fleet:
    return given(
        *an_approved_node(slots=2), *a_model(), *a_placed_replica("r-1"), *a_ready_replica("r-2", index=1)
    ).fleet


def cause(fleet: Fleet, event: AnyEvent) -> str | None:
    return of_its_replica(fleet, event, REPORT).causation


def test_each_event_of_a_report_follows_from_the_last_event_of_its_own_replica() -> None:
    """H1."""
    fleet = two_replicas()
    first, second = fleet.replicas[ReplicaId("r-1")], fleet.replicas[ReplicaId("r-2")]
    assert first.cause != second.cause
    crashed = ReplicaCrashed(node="n1", replica=second.id, exit=ProcessExit())
    assert cause(fleet, crashed) == second.cause
    assert cause(fleet, ModelReplicaReady(model="m", replica=first.id)) == first.cause
    assert cause(fleet, ReservationResized(node="n1", reservation=ReservationId("v-1"), vram={0: 1})) == first.cause
    assert [cause(fleet, event) for event in end(fleet, [second.id], reason="crashed")] == [second.cause] * 3


def test_the_command_and_the_actor_stay_the_workers() -> None:
    """H1: who did it is never unknown, and event ids stay the same for every try."""
    fleet = two_replicas()
    told = of_its_replica(fleet, ReplicaCrashed(node="n1", replica=ReplicaId("r-2"), exit=ProcessExit()), REPORT)
    assert (told.actor, told.command, told.correlation) == (REPORT.actor, REPORT.command, "given")


def test_what_is_about_no_replica_or_about_several_is_the_commands_own() -> None:
    """H1: one cause can't be told for several."""
    fleet = two_replicas()
    both = (ReplicaId("r-1"), ReplicaId("r-2"))
    for event in (
        NodeDeparted(node="n1", incarnation=fleet.nodes[next(iter(fleet.nodes))].incarnation),
        ReplicaUnloaded(node="n1", replicas=both, reason="node_departed"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"), ReservationId("v-2"))),
    ):
        assert of_its_replica(fleet, event, REPORT) == REPORT


def test_an_end_follows_from_the_stop_that_was_asked_for() -> None:
    """H1, R8."""
    fleet = given(*an_approved_node(), *a_model(), *a_ready_replica(), *a_drain(), *a_stop()).fleet
    stop_requested = f"given-{fleet.sequence}.0"
    assert [cause(fleet, event) for event in end(fleet, [ReplicaId("r-1")], reason="requested")] == [stop_requested] * 3


def test_a_newcomer_loads_because_its_last_victim_has_ended() -> None:
    """H1, P3."""
    fleet = given(
        *an_approved_node(),
        *a_model(),
        *a_ready_replica("r-1"),
        *a_drain("r-1"),
        *a_placed_replica("r-2", index=0, waits_for=(ReplicaId("r-1"),)),
        *a_stop("r-1"),
        ReplicaUnloaded(node="n1", replicas=(ReplicaId("r-1"),), reason="evicted_lru"),
    ).fleet
    assert fleet.replicas[ReplicaId("r-2")].cause == f"given-{fleet.sequence}.0"


def test_a_trace_goes_on_until_the_replica_is_loaded_and_from_its_drain_until_it_is_gone() -> None:
    """H1: the events that a request caused bear its trace; what befalls a ready replica later is another story."""
    fleet = two_replicas()
    loading, ready = fleet.replicas[ReplicaId("r-1")], fleet.replicas[ReplicaId("r-2")]
    loading.trace, ready.trace = "of the request", "of another"
    report = msgspec.structs.replace(REPORT, trace="of the report")

    def trace(replica: ReplicaId) -> str | None:
        crash = ReplicaCrashed(node="n1", replica=replica, exit=ProcessExit())
        return of_its_replica(fleet, crash, report).trace

    assert trace(loading.id) == "of the request"
    assert trace(ready.id) == "of the report"
    draining = given(*an_approved_node(), *a_model(), *a_ready_replica(), *a_drain()).fleet
    (state,) = draining.replicas.values()
    state.trace = "of the drain"
    ended = ReplicaUnloaded(node="n1", replicas=(state.id,), reason="requested")
    assert of_its_replica(draining, ended, report).trace == "of the drain"
    state.trace = None
    assert of_its_replica(draining, ended, report).trace == "of the report"


def test_a_workers_time_is_told_beside_everything_else() -> None:
    """H1: what it doesn't tell stays unsaid."""
    told = as_it_occurred(1_750_000_000_000_000_000, REPORT)
    assert told.occurred_at == datetime(2025, 6, 15, 15, 6, 40, tzinfo=UTC)
    assert msgspec.structs.replace(told, occurred_at=None) == REPORT
    assert as_it_occurred(None, REPORT) == REPORT
