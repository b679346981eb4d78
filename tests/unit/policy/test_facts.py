"""What workers tell, decided: loads, ends, measurements, departures, and what came too late (rules W1, R3, R6, R8)."""

import msgspec
import pytest

from modelyard_events.decision import Decision
from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import IncarnationId, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelRedefined, ModelReplicaDraining, ModelReplicaEnded, ModelReplicaReady
from modelyard_events.node import Gpu, NodeCapacityChanged, NodeDeparted, NodeRemoved
from modelyard_events.replica import (
    EndReason,
    ProcessExit,
    ReplicaCrashed,
    ReplicaDrainStarted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from modelyard_events.requests import (
    CapacityChanged,
    Crashed,
    Departing,
    Fact,
    Loaded,
    LoadFailed,
    LoadStarted,
    Measured,
    ProbeFailed,
    Report,
    Stopped,
)
from modelyard_events.reservation import ReservationReleased, ReservationResized
from modelyard_events.spec import ModelSpec, revision_of
from modelyard_projections.fleet import Placed, Ready
from modelyard_services.errors import NodeGoneError, StaleFactError
from modelyard_services.policy import facts
from modelyard_services.policy.facts import FACTS_PER_APPEND
from tests.support.given import (
    GIB,
    Decide,
    a_drain,
    a_loading_replica,
    a_model,
    a_placed_replica,
    a_ready_replica,
    a_stop,
    an_approved_node,
    given,
    incarnation_of,
    some_process,
    some_spec,
)

N1, R1, R2 = NodeName("n1"), ReplicaId("r-1"), ReplicaId("r-2")
LIFE = incarnation_of("n1")
ADDRESS = f"127.0.0.1:{some_process().port}"
NODE: list[AnyEvent] = [*an_approved_node(slots=4), *a_model()]
KILLED = ProcessExit(exit_code=-9, signal="SIGKILL", stderr_tail=("loading", "out of memory"))
LOAD_STARTED = LoadStarted(R1, some_process())
LOADED = Loaded(R1, ADDRESS)


def a_report(*told: Fact, incarnation: IncarnationId = LIFE) -> Report:
    return Report(node=N1, incarnation=incarnation, report=1, facts=told)


def telling(*told: Fact) -> Decide:
    return lambda fleet: facts.report(fleet, a_report(*told)).events


def stale(history: list[AnyEvent], *told: Fact) -> dict[ReplicaId, str]:
    """Which facts came too late; such facts decide nothing."""
    outcome = facts.report(given(*history).fleet, a_report(*told))
    assert outcome.events == ()
    return outcome.stale


def ended(replica: str = "r-1", *, reason: EndReason, detail: str = "") -> list[AnyEvent]:
    ids = (ReplicaId(replica),)
    return [
        ReplicaUnloaded(node="n1", replicas=ids, reason=reason, detail=detail),
        ReservationReleased(node="n1", reservations=(ReservationId(replica.replace("r-", "v-", 1)),)),
        ModelReplicaEnded(model="m", replicas=ids, reason=reason, detail=detail),
    ]


def test_a_removed_nodes_worker_is_told_that_it_is_gone() -> None:
    """N13, X10."""
    given(*NODE, NodeRemoved(node="n1")).when(telling(LOADED)).then_raises(NodeGoneError, "register afresh")


def test_a_fact_of_another_incarnation_is_refused_and_told_why() -> None:
    """W1."""
    old = a_report(LOADED, incarnation=IncarnationId("n1-life-0"))
    given(*NODE, *a_model(), *a_loading_replica()).when(lambda fleet: facts.report(fleet, old).events).then_raises(
        StaleFactError, LIFE
    )


def test_a_load_begins_with_its_process() -> None:
    given(*NODE, *a_placed_replica()).when(telling(LOAD_STARTED)).then(
        ReplicaLoadStarted(node="n1", replica=R1, incarnation=LIFE, process=some_process())
    )


def test_loading_before_the_victims_have_ended_is_refused() -> None:
    """P3."""
    history = [*NODE, *a_ready_replica(), *a_placed_replica("r-2", index=1, waits_for=(R1,))]
    assert "may not load before r-1" in stale(history, LoadStarted(R2, some_process("r-2")))[R2]


def test_a_newcomer_loads_once_its_victims_end_even_in_the_same_report() -> None:
    """P3, W8: what was buffered while the log was away is decided in its order."""
    newcomer = a_placed_replica("r-2", index=1, waits_for=(R1,))
    history = [*NODE, *a_ready_replica(), *a_drain(reason="evicted_memory"), *a_stop(), *newcomer]
    given(*history).when(telling(Stopped(R1), LoadStarted(R2, some_process("r-2")))).then(
        *ended(reason="evicted_memory"),
        ReplicaLoadStarted(node="n1", replica=R2, incarnation=LIFE, process=some_process("r-2")),
    )


def test_a_loaded_replica_is_published_on_its_model_too() -> None:
    """DESIGN 2: `loaded` guards the model."""
    given(*NODE, *a_loading_replica()).when(telling(LOADED)).then(
        ReplicaLoaded(node="n1", replica=R1, incarnation=LIFE, address=ADDRESS),
        ModelReplicaReady(model="m", replica=R1),
    )


def test_the_reservation_takes_the_measured_size_when_the_load_ends() -> None:
    """R3."""
    history = given(*NODE, *a_loading_replica())
    history.when(telling(Loaded(R1, ADDRESS, memory={0: 3 * GIB}))).then(
        ReplicaLoaded(node="n1", replica=R1, incarnation=LIFE, address=ADDRESS),
        ReservationResized(node="n1", reservation=ReservationId("v-1"), vram={0: 3 * GIB}),
        ModelReplicaReady(model="m", replica=R1),
    )
    assert history.fleet.nodes[N1].reserved == {0: 3 * GIB}


def test_a_load_told_whole_at_once_is_decided_in_its_order() -> None:
    """W8."""
    history = given(*NODE, *a_placed_replica())
    events = history.when(telling(LOAD_STARTED, LOADED)).events
    assert [type(event) for event in events] == [ReplicaLoadStarted, ReplicaLoaded, ModelReplicaReady]
    assert isinstance(history.fleet.replicas[R1].phase, Ready)


def test_a_measurement_that_is_missing_leaves_the_reservation_as_it_is() -> None:
    """N9: unknown is not zero, nor is a device that nobody knows."""
    history = [*NODE, *a_loading_replica()]
    events = given(*history).when(telling(Loaded(R1, ADDRESS, memory={0: 0, 7: GIB}))).events
    assert [type(event) for event in events] == [ReplicaLoaded, ModelReplicaReady]


def test_a_measured_footprint_keeps_the_devices_that_were_not_measured() -> None:
    """R3, N9."""
    history = [*an_approved_node(gpus=2), *a_model(), *a_loading_replica(vram={0: GIB, 1: GIB})]
    events = given(*history).when(telling(Loaded(R1, ADDRESS, memory={1: 2 * GIB}))).events
    assert ReservationResized(node="n1", reservation=ReservationId("v-1"), vram={0: GIB, 1: 2 * GIB}) in events


def test_a_load_of_a_superseded_revision_is_stopped_and_never_published() -> None:
    """R6."""
    newer = ModelSpec(command=("serve", "v2"))
    redefined = ModelRedefined(model="m", spec=newer, revision=revision_of(newer), previous=revision_of(some_spec()))
    given(*NODE, *a_loading_replica(), redefined).when(telling(LOADED)).then(
        ReplicaDrainStarted(node="n1", replicas=(R1,), reason="superseded", deadline_seconds=0),
        ModelReplicaDraining(model="m", replicas=(R1,), reason="superseded"),
        ReplicaStopRequested(node="n1", replicas=(R1,)),
    )


def test_a_load_that_ends_while_draining_is_not_published() -> None:
    """R8."""
    assert "draining (requested)" in stale([*NODE, *a_loading_replica(), *a_drain()], LOADED)[R1]


def test_a_failed_load_frees_slot_and_memory_in_the_same_append() -> None:
    """R7, I7, T6."""
    history = given(*NODE, *a_loading_replica())
    history.when(telling(LoadFailed(R1, "health check timed out", KILLED))).then(
        ReplicaLoadFailed(node="n1", replica=R1, detail="health check timed out", exit=KILLED),
        *ended(reason="load_failed", detail="health check timed out"),
    )
    node = history.fleet.nodes[N1]
    assert (node.reserved, node.slots) == ({}, {})
    assert node.load_failures[ModelName("m")].count == 1


def test_a_command_that_the_worker_refuses_fails_before_it_started() -> None:
    """W3."""
    detail = "command 'rm' is not allowed here"
    given(*NODE, *a_placed_replica()).when(telling(LoadFailed(R1, detail))).then(
        ReplicaLoadFailed(node="n1", replica=R1, detail=detail), *ended(reason="load_failed", detail=detail)
    )


def test_a_crash_ends_that_replica_with_its_exit_and_last_words() -> None:
    """W5, X4: its sibling serves on."""
    history = given(*NODE, *a_ready_replica(), *a_ready_replica("r-2", index=1))
    history.when(telling(Crashed(R1, KILLED))).then(
        ReplicaCrashed(node="n1", replica=R1, exit=KILLED),
        *ended(reason="crashed", detail="signal SIGKILL: out of memory"),
    )
    assert isinstance(history.fleet.replicas[R2].phase, Ready)


def test_an_exit_that_nobody_asked_for_is_a_crash() -> None:
    given(*NODE, *a_ready_replica()).when(telling(Stopped(R1, ProcessExit(exit_code=0)))).then(
        ReplicaCrashed(node="n1", replica=R1, exit=ProcessExit(exit_code=0)),
        *ended(reason="crashed", detail="exit code 0"),
    )


def test_a_process_that_ends_before_it_is_ready_failed_to_load() -> None:
    events = given(*NODE, *a_loading_replica()).when(telling(Crashed(R1, ProcessExit()))).events
    assert events[0] == ReplicaLoadFailed(node="n1", replica=R1, detail="the process ended")


@pytest.mark.parametrize("fact", [Stopped(R1), Crashed(R1, KILLED)])
def test_a_stopped_replica_ends_for_the_reason_it_drained(fact: Fact) -> None:
    """R7, R8."""
    given(*NODE, *a_ready_replica(), *a_drain(reason="idle"), *a_stop()).when(telling(fact)).then(*ended(reason="idle"))


def test_a_failed_probe_drains_that_replica_alone() -> None:
    """R7, X12, T4."""
    history = [*NODE, *a_ready_replica(), *a_ready_replica("r-2", index=1)]
    why = Decision(kind="end", outcome="3 probes missed", policy="facts/1", basis=len(history), considered=1)
    given(*history).when(telling(ProbeFailed(R1, "3 probes missed"))).then(
        ReplicaDrainStarted(node="n1", replicas=(R1,), reason="probe_failed", deadline_seconds=600.0, decision=why),
        ModelReplicaDraining(model="m", replicas=(R1,), reason="probe_failed"),
    )


def test_a_probe_of_a_replica_that_is_not_ready_says_nothing() -> None:
    assert "isn't ready" in stale([*NODE, *a_loading_replica()], ProbeFailed(R1, "missed"))[R1]


def test_a_measurement_in_mid_load_never_touches_the_reservation() -> None:
    """X5, R3."""
    given(*NODE, *a_loading_replica()).when(telling(Measured(R1, {0: 1}))).then_nothing()


def test_a_material_change_of_the_footprint_resizes_the_reservation() -> None:
    """R3: a breath of the allocator doesn't."""
    history = given(*NODE, *a_ready_replica(vram={0: 4 * GIB}))
    history.when(telling(Measured(R1, {0: 4 * GIB + GIB // 8}))).then_nothing()
    history.when(telling(Measured(R1, {0: 5 * GIB}))).then(
        ReservationResized(node="n1", reservation=ReservationId("v-1"), vram={0: 5 * GIB})
    )


def test_a_change_of_capacity_is_told_once() -> None:
    """N8."""
    gpus = (Gpu(0, "nvidia", "Test GPU", 12 * GIB),)
    history = given(*NODE)
    changed = CapacityChanged(gpus=gpus, ram_total=GIB)
    history.when(telling(changed)).then(NodeCapacityChanged(node="n1", incarnation=LIFE, gpus=gpus, ram_total=GIB))
    history.when(telling(changed)).then_nothing()
    history.when(telling(CapacityChanged(ram_total=-1))).then_raises(InvalidValueError)


def test_a_graceful_stop_departs_and_ends_everything_there() -> None:
    """N9, R7."""
    replicas = (R1, R2)
    history = given(*NODE, *a_ready_replica(), *a_placed_replica("r-2", index=1))
    history.when(telling(Departing())).then(
        NodeDeparted(node="n1", incarnation=LIFE),
        ReplicaUnloaded(node="n1", replicas=replicas, reason="node_departed"),
        ReservationReleased(node="n1", reservations=(ReservationId("v-1"), ReservationId("v-2"))),
        ModelReplicaEnded(model="m", replicas=replicas, reason="node_departed"),
    )
    history.when(telling(Departing())).then_nothing()


REPEATABLE: list[tuple[list[AnyEvent], Fact]] = [
    (a_placed_replica(), LOAD_STARTED),
    (a_loading_replica(), LOADED),
    (a_loading_replica(), Loaded(R1, ADDRESS, memory={0: 2 * GIB})),
    (a_loading_replica(), LoadFailed(R1, "no")),
    (a_ready_replica(), Crashed(R1, KILLED)),
    ([*a_ready_replica(), *a_drain(), *a_stop()], Stopped(R1)),
    (a_ready_replica(), ProbeFailed(R1, "no")),
    (a_ready_replica(), Measured(R1, {0: 2 * GIB})),
    ([], CapacityChanged(ram_total=GIB)),
    (a_ready_replica(), Departing()),
]


@pytest.mark.parametrize(("history", "fact"), REPEATABLE)
def test_a_fact_told_twice_changes_nothing_the_second_time(history: list[AnyEvent], fact: Fact) -> None:
    """I11: neither in the same report nor in the next."""
    start = given(*NODE, *history)
    once = start.when(telling(fact)).events
    assert once
    start.when(telling(fact)).then_nothing()
    given(*NODE, *history).when(telling(fact, fact)).then(*once)


@pytest.mark.parametrize(("history", "fact"), REPEATABLE)
def test_deciding_leaves_the_fleet_as_it_is(history: list[AnyEvent], fact: Fact) -> None:
    """A decision may be thrown away and decided again: the draft folds into copies."""
    fleet = given(*NODE, *history, *a_ready_replica("r-2", index=1)).fleet
    before = repr(fleet)
    assert facts.report(fleet, a_report(fact)).events
    assert repr(fleet) == before


def test_a_fact_of_a_replica_that_is_over_is_named_with_why() -> None:
    """W1: and the other facts of the report are decided all the same."""
    outcome = facts.report(given(*NODE, *a_loading_replica()).fleet, a_report(Stopped(R2), LOADED))
    assert "has ended" in outcome.stale[R2]
    assert [type(event) for event in outcome.events] == [ReplicaLoaded, ModelReplicaReady]


def test_a_replica_on_another_node_is_none_of_this_workers_business() -> None:
    """W1."""
    history = [*NODE, *an_approved_node("n2"), *a_ready_replica(node="n2")]
    assert R1 in stale(history, Crashed(R1, KILLED))


@pytest.mark.parametrize(
    ("history", "fact", "why"),
    [
        (a_placed_replica(), LOADED, "no process was told of"),
        (a_ready_replica(), Loaded(R1, "127.0.0.1:1"), "is ready at"),
        (a_loading_replica(), LoadStarted(R1, some_process("r-9")), "another process"),
    ],
)
def test_a_fact_that_contradicts_the_fleet_decides_nothing(history: list[AnyEvent], fact: Fact, why: str) -> None:
    assert why in stale([*NODE, *history], fact)[R1]


def test_an_address_that_nobody_could_reach_is_refused() -> None:
    given(*NODE, *a_loading_replica()).when(telling(Loaded(R1, ""))).then_raises(InvalidValueError, "address")


def test_the_last_words_of_a_process_are_bounded() -> None:
    """W5: by what an event holds: twenty of the longest lines, and none of them endless."""
    exit_ = ProcessExit(exit_code=1, stderr_tail=tuple("x" * 5_000 for _ in range(100)))
    event = given(*NODE, *a_ready_replica()).when(telling(Crashed(R1, exit_))).events[0]
    assert isinstance(event, ReplicaCrashed)
    assert len(event.exit.stderr_tail) == 20
    assert len(event.exit.stderr_tail[0]) == 500


def test_a_worker_may_tell_more_of_the_last_words_where_they_are_short() -> None:
    """W5, S1: as many as its own --stderr-lines; the last ones, whole."""
    exit_ = ProcessExit(exit_code=1, stderr_tail=("x" * 9_000, *(f"line {number}" for number in range(99))))
    event = given(*NODE, *a_ready_replica()).when(telling(Crashed(R1, exit_))).events[0]
    assert isinstance(event, ReplicaCrashed)
    assert event.exit.stderr_tail == ("x" * 500, *(f"line {number}" for number in range(99)))


def test_a_long_report_is_cut_into_appends_the_same_way_each_time() -> None:
    """W8: each with a command of its own, so that a resend is recognised part by part."""
    told = a_report(*(Measured(R1, {0: number}) for number in range(FACTS_PER_APPEND + 1)))
    parts = facts.slices(told)
    assert [len(part.facts) for part in parts] == [FACTS_PER_APPEND, 1]
    assert tuple(fact for part in parts for fact in part.facts) == told.facts


def test_a_departure_stands_alone_and_speaks_for_the_stops_before_it() -> None:
    """N9: a worker that leaves crashed nothing."""
    parts = facts.slices(a_report(Stopped(R1), Measured(R2, {0: 1}), Departing()))
    assert [part.facts for part in parts] == [(Measured(R2, {0: 1}),), (Departing(),)]


def test_a_report_of_nothing_is_no_append() -> None:
    assert facts.slices(a_report()) == []


def test_a_claim_outlives_a_refused_start() -> None:
    """P3: the newcomer keeps waiting."""
    history = [*NODE, *a_ready_replica(), *a_placed_replica("r-2", index=1, waits_for=(R1,))]
    start = given(*history)
    start.when(telling(LoadStarted(R2, some_process("r-2")))).then_nothing()
    assert isinstance(start.fleet.replicas[R2].phase, Placed)


def test_each_event_has_the_time_of_the_fact_that_it_comes_from() -> None:
    """H1: by the worker's clock; a fact that came too late has no event, and a worker that tells no times no time."""
    history = given(*NODE, *a_placed_replica())
    told = msgspec.structs.replace(
        a_report(LOAD_STARTED, Stopped(R2), LOADED), occurred_ns=(1_000_000_000, 2_000_000_000, 3_000_000_000)
    )
    (part,) = facts.slices(told)
    outcome = facts.report(history.fleet, part)
    assert [type(event) for event in outcome.events] == [ReplicaLoadStarted, ReplicaLoaded, ModelReplicaReady]
    assert outcome.occurred_ns == (1_000_000_000, 3_000_000_000, 3_000_000_000)
    silent = facts.report(history.fleet, a_report(LOAD_STARTED, LOADED))
    assert silent.occurred_ns == (None, None, None)


def test_a_departure_keeps_its_own_time_when_a_report_is_divided() -> None:
    """H1: the stops before it are left out, and their times with them."""
    told = msgspec.structs.replace(a_report(Stopped(R1), LOADED, Departing()), occurred_ns=(1, 2, 3))
    assert [(part.facts, part.occurred_ns) for part in facts.slices(told)] == [
        ((LOADED,), (2,)),
        ((Departing(),), (3,)),
    ]
