"""One pass after another: floors, spread, drains, rollouts, deadlines (rules C1-C3, C6, C7, N10, R6, R8)."""

from modelyard_events.decision import Decision
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import IncarnationId, ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.model import ModelPlacementRefused, ModelRedefined, ModelScheduleSet
from modelyard_events.node import (
    NodeDrainFinished,
    NodeDrainStarted,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeRecovered,
    NodeResumed,
)
from modelyard_events.replica import (
    ReplicaDrainStarted,
    ReplicaLoadFailed,
    ReplicaPlaced,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationReleased
from modelyard_events.selectors import parse_selector
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, SpreadAll, revision_of
from modelyard_events.telemetry import Heartbeat, ReplicaReading
from modelyard_services.policy.actions import NANOSECONDS
from modelyard_services.policy.deadlines import told_by_ns
from modelyard_services.policy.due import next_due_ns
from modelyard_services.policy.ending import end
from modelyard_services.policy.models import remove
from modelyard_services.policy.reconcile import reconcile
from modelyard_services.policy.restart import restart
from tests.support.given import (
    GIB,
    a_drain,
    a_loading_replica,
    a_model,
    a_placed_replica,
    a_ready_replica,
    an_approved_node,
    incarnation_of,
    some_facts,
    some_process,
    some_spec,
)
from tests.support.world import World

M = ModelName("m")
R1 = ReplicaId("r-1")


def scheduled(schedule: Schedule, model: str = "m") -> ModelScheduleSet:
    return ModelScheduleSet(model=ModelName(model), schedule=schedule, source="api")


def at_least(replicas: int, at_most: int = 0, **options: object) -> ModelScheduleSet:
    return scheduled(Schedule(mode=Autoscale(replicas, at_most), **options))  # type: ignore[arg-type]


def redefined(**also: object) -> ModelRedefined:
    spec = ModelSpec(command=("serve", "--better"), vram=GIB, **also)  # type: ignore[arg-type]
    return ModelRedefined(model=M, spec=spec, revision=revision_of(spec), previous=revision_of(some_spec()))


def three_nodes(**also: object) -> list[object]:
    return [event for name in ("n1", "n2", "n3") for event in an_approved_node(name, **also)]  # type: ignore[arg-type]


def test_a_floor_is_filled_on_a_cold_fleet_before_any_request() -> None:
    """C2, X19."""
    world = World(*three_nodes(), *a_model(), at_least(2))  # type: ignore[arg-type]
    world.live()
    assert [phase for _, phase in world.replicas()] == ["ready", "ready"]


def test_a_floor_above_what_fits_is_filled_as_far_as_it_goes_and_said_once() -> None:
    """C2, P5."""
    world = World(*an_approved_node("n1"), *an_approved_node("n2"), *a_model(), at_least(5))
    world.live()
    assert len(world.replicas()) == 2
    assert len(world.of(ModelPlacementRefused)) == 1


def test_one_pass_places_all_that_the_floor_lacks() -> None:
    """C2: up to the shortage, each in a decision of its own."""
    world = World(*three_nodes(), *a_model(), at_least(3))  # type: ignore[arg-type]
    world.one_pass()
    assert [phase for _, phase in world.replicas()] == ["placed"] * 3


def test_two_reconcilers_that_see_the_same_lack_do_one_thing_under_one_name() -> None:
    """C1: one command id for one action, and whoever comes second decides again on what is there by then."""
    world = World(*three_nodes(), *a_model(), at_least(2))  # type: ignore[arg-type]
    one, other = ([action for action in reconcile(world.view()) if action.key.startswith("floor/")] for _ in range(2))
    assert len(one) == 2
    assert [action.command for action in one] == [action.command for action in other]
    assert one[0].command != one[1].command
    for action in one:
        world.append(*action.decide(world.fleet, action.command), command=action.command)
    assert [list(action.decide(world.fleet, action.command)) for action in other] == [[], []]
    assert len(world.replicas()) == 2


def test_a_settled_fleet_gives_nothing_to_do() -> None:
    """C1: level-triggered, and asking twice changes nothing."""
    world = World(*three_nodes(), *a_model(), at_least(2))  # type: ignore[arg-type]
    world.live()
    for _ in range(3):
        world.later(20)
        assert world.one_pass() == []


def test_replicas_beside_each_other_on_one_node_each_count_and_nothing_more_is_wanted() -> None:
    """X1: the second overwrites nothing: each has its slot, its memory and its place in the model's book."""
    world = World(*an_approved_node("n1", slots=5), *a_model(), at_least(3))
    world.live()
    assert world.replicas() == [("n1", "ready")] * 3
    node, model = world.fleet.nodes[NodeName("n1")], world.fleet.models[M]
    assert sorted(node.slots[M]) == [0, 1, 2]
    assert set(node.replicas) == set(node.slots[M].values()) == set(model.replicas)
    assert sum(node.reserved.values()) == 3 * GIB
    for _ in range(3):
        world.later(20)
        assert world.one_pass() == []


def test_an_undefined_model_is_waited_for() -> None:
    """S1: the schedule is kept; the definition starts it."""
    world = World(*an_approved_node(), at_least(1))
    assert world.settle() == []
    world.append(*a_model())
    world.live()
    assert world.replicas() == [("n1", "ready")]


def test_only_replicas_that_match_the_selector_count() -> None:
    """C2: a replica elsewhere is no part of the floor; once the floor is filled it goes."""
    world = World(
        *an_approved_node("n1"),
        *an_approved_node("n2", labels={"tier": "gpu"}),
        *a_model(),
        *a_ready_replica(R1, node="n1"),
        at_least(1, node_selector=parse_selector("tier=gpu")),
    )
    world.settle()
    assert world.replicas() == [("n1", "ready"), ("n2", "placed")]
    world.live()
    assert world.replicas() == [("n2", "ready")]


def test_spread_all_puts_one_on_every_node_whatever_its_slots() -> None:
    """C3, X18: two slots a node, one replica each."""
    world = World(*three_nodes(slots=2), *a_model(), scheduled(Schedule(mode=SpreadAll())))  # type: ignore[arg-type]
    world.live()
    assert world.replicas() == [("n1", "ready"), ("n2", "ready"), ("n3", "ready")]
    for _ in range(4):
        world.later(20)
        assert world.one_pass() == [], "a free slot is no want"
    assert world.of(ModelPlacementRefused) == []


def test_spread_all_asks_nothing_of_nodes_that_do_not_match_or_take_nothing() -> None:
    """C3: no refusal is told of them either, for nobody wanted anything there."""
    world = World(*three_nodes(), *a_model())  # type: ignore[arg-type]
    world.append(NodeLabelsChanged(node="n1", changed={"off": "yes"}))  # type: ignore[dict-item]
    world.append(NodeDrainStarted(node="n2", deadline_seconds=60))
    world.append(scheduled(Schedule(mode=SpreadAll(), node_selector=parse_selector("!off"))))
    world.live()
    assert world.replicas() == [("n3", "ready")]
    assert world.of(ModelPlacementRefused) == []


def test_a_second_replica_on_a_node_goes_once_each_node_is_to_have_one() -> None:
    """C3: exactly one; what was there before the schedule is held to it too."""
    world = World(*an_approved_node(slots=2), *a_model(), *a_ready_replica(R1), *a_ready_replica("r-2", index=1))
    world.append(scheduled(Schedule(mode=SpreadAll())))
    world.route()
    world.live()
    assert [state.replica_index for state in world.fleet.replicas.values()] == [0]


def test_idle_replicas_stop_going_at_a_floor_above_one() -> None:
    """C4, C2."""
    names = ("r-0", "r-1", "r-2")
    ready = [event for index, name in enumerate(names) for event in a_ready_replica(name, index=index)]
    world = World(*an_approved_node(slots=3), *a_model(), *ready, at_least(2))
    world.later(301).route()
    world.live()
    assert sorted(world.fleet.replicas) == ["r-0", "r-1"]


def test_spread_all_follows_nodes_and_labels() -> None:
    """C3: a node that joins gets one, one that stops matching loses it, one that matches again gets it back."""
    world = World(
        *an_approved_node("n1"),
        *an_approved_node("n2"),
        *a_model(),
        scheduled(Schedule(mode=SpreadAll(), node_selector=parse_selector("!off"))),
    )
    world.live()
    world.append(*an_approved_node("n3"))
    world.live()
    assert [node for node, _ in world.replicas()] == ["n1", "n2", "n3"]
    world.append(NodeLabelsChanged(node="n1", changed={"off": "yes"}))  # type: ignore[dict-item]
    world.live()
    assert [node for node, _ in world.replicas()] == ["n2", "n3"]
    world.append(NodeLabelsChanged(node="n1", removed=("off",)))  # type: ignore[arg-type]
    world.live()
    assert [node for node, _ in world.replicas()] == ["n1", "n2", "n3"]


def test_a_lost_nodes_replica_is_replaced_elsewhere_meanwhile_and_the_surplus_goes_again() -> None:
    """R7, C2, N9: it keeps its slot for the grace, counts for nothing, and comes back as one too many."""
    world = World(*an_approved_node("n1"), *an_approved_node("n2"), *a_model(), at_least(1, 1))
    world.live()
    lost = next(iter(world.fleet.replicas.values())).node
    world.append(NodeLost(node=lost, incarnation=incarnation_of(lost), silent_seconds=61, grace_seconds=600))
    world.live()
    assert [phase for _, phase in world.replicas()] == ["ready", "ready"]
    world.append(NodeRecovered(node=lost, incarnation=incarnation_of(lost)))
    world.route()
    world.live()
    assert [phase for _, phase in world.replicas()] == ["ready"]
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["scaled_down"]  # type: ignore[union-attr]


def test_what_is_idle_above_its_floor_goes_highest_index_first() -> None:
    """C4: after five minutes, never below the floor, never a busy one."""
    world = World(
        *an_approved_node(slots=3),
        *a_model(),
        *a_ready_replica("r-0", index=0),
        *a_ready_replica("r-1", index=1),
        *a_ready_replica("r-2", index=2),
        at_least(1),
    )
    world.later(299).route()
    assert world.settle() == []
    world.later(2).route(r_2=1)
    world.settle()
    drained = [event.replicas for event in world.of(ReplicaDrainStarted)]  # type: ignore[union-attr]
    assert drained == [("r-1",), ("r-0",)]
    assert world.fleet.models[M].serving == 1


def test_a_drained_node_is_replaced_first_and_serves_until_then() -> None:
    """R7, N10: the floor never goes unserved; the node says when it is empty."""
    world = World(*an_approved_node("n1"), *a_model(), at_least(1), *a_ready_replica(R1))
    world.append(*an_approved_node("n2"), NodeDrainStarted(node="n1", deadline_seconds=600))
    world.settle()
    assert world.replicas() == [("n1", "ready"), ("n2", "placed")]
    world.work()
    world.settle()
    assert world.replicas() == [("n1", "ready"), ("n2", "loading")]
    world.live()
    assert world.replicas() == [("n2", "ready")]
    assert world.of(NodeDrainFinished) == [NodeDrainFinished(node="n1")]
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["drained"]  # type: ignore[union-attr]


def test_a_drain_without_capacity_elsewhere_goes_ahead() -> None:
    """N10: where capacity allows."""
    world = World(*an_approved_node("n1"), *a_model(), at_least(1), *a_ready_replica(R1))
    world.append(NodeDrainStarted(node="n1", deadline_seconds=600))
    world.live()
    assert world.replicas() == []


def test_a_drain_ends_at_its_deadline_whoever_still_waits() -> None:
    """R1, N10, R8: leases in flight are cut then, and the stop says so."""
    world = World(*an_approved_node("n1"), *a_model(), *a_ready_replica(R1))
    world.append(NodeDrainStarted(node="n1", deadline_seconds=600))
    world.route(r_1=1)
    world.settle()
    assert world.replicas() == [("n1", "draining")]
    world.later(599).route(r_1=1)
    assert world.settle() == []
    world.later(2).route(r_1=1)
    assert world.settle() == [ReplicaStopRequested(node="n1", replicas=(R1,), forced=True)]


def test_a_nodes_drain_waits_for_the_requests_on_its_replicas() -> None:
    """N10, R8, X11: the replica stays in the books with its leases until the last one is let go."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    world.route(r_1=1)
    world.append(NodeDrainStarted(node="n1", deadline_seconds=600))
    world.settle()
    world.later(60).route(r_1=1)
    world.settle()
    assert world.replicas() == [("n1", "draining")]
    assert world.of(ReplicaStopRequested) == []
    world.route()
    world.settle()
    assert world.of(ReplicaStopRequested) == [ReplicaStopRequested(node="n1", replicas=(R1,))]


def test_a_replica_that_its_floor_needs_waits_for_its_newcomer_until_the_nodes_deadline() -> None:
    """N10: a replacement that takes too long keeps no node from being emptied, and no drain outlives the node's."""
    world = World(*an_approved_node("n1"), *a_model(), at_least(1), *a_ready_replica(R1))
    world.append(*an_approved_node("n2"), NodeDrainStarted(node="n1", deadline_seconds=90))
    world.route()
    world.settle()
    assert world.replicas() == [("n1", "ready"), ("n2", "placed")]
    world.later(89).route()
    world.settle()
    assert ("n1", "ready") in world.replicas()
    world.later(2).route()
    world.settle()
    (drained,) = world.of(ReplicaDrainStarted)
    assert isinstance(drained, ReplicaDrainStarted)
    assert (drained.replicas, drained.reason, drained.deadline_seconds) == ((R1,), "drained", 0)


def test_the_drain_of_a_replica_ends_with_that_of_its_node() -> None:
    """N10: what is left of the node's deadline, not one of its own."""
    world = World(*an_approved_node("n1"), *a_model(), *a_ready_replica(R1))
    world.append(NodeDrainStarted(node="n1", deadline_seconds=90))
    world.route()
    world.settle()
    (drained,) = world.of(ReplicaDrainStarted)
    assert isinstance(drained, ReplicaDrainStarted)
    assert 80 < drained.deadline_seconds <= 90


def test_a_drain_that_is_undone_before_it_is_appended_drains_nothing() -> None:
    """N10: the reconciler decides again on the node as it is by then."""
    world = World(*an_approved_node("n1"), *a_model(), *a_ready_replica(R1))
    world.append(NodeDrainStarted(node="n1", deadline_seconds=90))
    due = [action for action in reconcile(world.view()) if action.key.startswith("drain/")]
    assert len(due) == 1
    world.append(NodeResumed(node="n1"))
    assert list(due[0].decide(world.fleet, due[0].command)) == []


def test_resuming_in_mid_drain_keeps_what_has_not_gone() -> None:
    """N10."""
    world = World(*an_approved_node("n1"), *a_model(), at_least(1), *a_ready_replica(R1), *an_approved_node("n2"))
    world.append(NodeDrainStarted(node="n1", deadline_seconds=600))
    world.settle()
    world.append(NodeResumed(node="n1"))
    world.route()
    world.live()
    assert ("n1", "ready") in world.replicas()


def test_a_replica_is_stopped_only_when_every_router_has_let_go() -> None:
    """R8, X11: folded the drain and holds no lease; a router that lags may still route to it."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    drained_at = world.fleet.sequence + 1
    world.append(*a_drain(R1))
    world.route("fast", folded=drained_at)
    world.route("slow", folded=drained_at - 1)
    assert world.settle() == []
    world.route("slow", folded=drained_at, r_1=1)
    assert world.settle() == []
    world.route("slow", folded=drained_at)
    assert world.settle() == [ReplicaStopRequested(node="n1", replicas=(R1,))]


def test_a_reconciler_that_just_started_takes_no_silence_of_routers_for_peace() -> None:
    """R8: before every router could be heard, no lease is known, not none."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), *a_drain(R1))
    world.connected_seconds = -1.0
    assert world.settle() == []
    world.later(5)
    assert len(world.settle()) == 1


def test_a_router_that_nobody_understands_may_hold_any_lease() -> None:
    """R8, X20: what can't be read is no word of peace: nothing is stopped before that router is gone."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), *a_drain(R1))
    world.demand.hear_garbled_router(now_ns=world.now_ns)
    assert world.settle() == []
    world.later(4.9)
    world.demand.hear_garbled_router(now_ns=world.now_ns)
    assert world.later(4.9).settle() == []
    assert world.later(0.2).settle() == [ReplicaStopRequested(node="n1", replicas=(R1,))]


def test_a_placement_that_no_worker_accepts_expires_and_counts_as_a_failed_load() -> None:
    """R1, R7, C7, T6."""
    world = World(*an_approved_node(), *a_model(), *a_placed_replica(R1))
    assert world.later(119).settle() == []
    world.later(2).settle()
    ended = world.of(ReplicaUnloaded)
    assert [(event.reason, event.detail) for event in ended] == [("load_expired", "not accepted within 120 s")]  # type: ignore[union-attr]
    assert world.fleet.nodes[NodeName("n1")].load_failures[M].count == 1
    assert not world.fleet.reservations


def test_a_load_past_its_deadline_is_stopped_before_its_memory_is_given_away() -> None:
    """R1, R7, C7: the process holds its memory until it is gone."""
    world = World(*an_approved_node(), *a_model(), *a_loading_replica(R1))
    world.later(301).settle()
    assert world.replicas() == [("n1", "draining")]
    assert world.fleet.reservations
    world.work()
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["load_expired"]  # type: ignore[union-attr]


def test_a_large_model_has_the_time_that_its_placement_told() -> None:
    """C7, X25: 5 min and 20 s for each of 60 GiB, though no worker tells of progress."""
    world = World(*an_approved_node(vram=80 * GIB), *a_model(spec=some_spec(vram=60 * GIB)), at_least(1))
    world.settle()
    world.work()
    assert world.replicas() == [("n1", "loading")]
    assert world.later(1_499).settle() == []
    world.later(2).settle()
    assert [event.detail for event in world.of(ReplicaLoadFailed)] == ["not ready within 1500 s, and no progress"]  # type: ignore[union-attr]


def test_a_long_healthy_load_is_never_killed() -> None:
    """R1, C7, X25: progress extends the deadline; standing still for five minutes doesn't."""
    world = World(*an_approved_node(), *a_model(), *a_loading_replica(R1))
    for share in range(1, 9):
        reading = ReplicaReading(R1, "m#0", "rev", "starting", some_process(R1), progress=share / 10)
        heartbeat = Heartbeat(NodeName("n1"), incarnation_of("n1"), 0, replicas=(reading,))
        world.after(200).demand.hear_node(heartbeat, now_ns=world.now_ns)
        assert world.settle() == []
    world.later(301)
    assert world.settle() != []


def test_progress_that_stands_still_extends_nothing_however_often_it_is_told() -> None:
    """C7, X25: five minutes from when it last moved."""
    world = World(*an_approved_node(), *a_model(), *a_loading_replica(R1))
    for seconds in (60, 60, 60, 60, 60, 59, 1):
        assert world.settle() == []
        reading = ReplicaReading(R1, "m#0", "rev", "starting", some_process(R1), progress=0.1)
        heartbeat = Heartbeat(NodeName("n1"), incarnation_of("n1"), 0, replicas=(reading,))
        world.after(seconds).demand.hear_node(heartbeat, now_ns=world.now_ns)
    assert [event.detail for event in world.settle() if isinstance(event, ReplicaLoadFailed)] == [
        "not ready within 300 s, and no progress"
    ]


def test_a_newcomer_has_its_time_from_the_end_of_the_last_it_waits_for() -> None:
    """C7, P3: two minutes in which its worker can do something, however long the place was taken."""
    leaving = [event for n in (0, 1) for event in a_ready_replica(f"r-{n}", index=n, vram={0: 12 * GIB})]
    newcomer = a_placed_replica("r-9", model="x", vram={0: 24 * GIB}, waits_for=(ReplicaId("r-0"), R1))
    world = World(*an_approved_node(slots=2), *a_model(), *a_model("x"), *leaving, *a_drain("r-0"), *a_drain(R1))
    world.append(*newcomer)
    for gone in ("r-0", R1):
        world.later(200)
        world.append(*end(world.fleet, [ReplicaId(gone)], reason="evicted_lru"))
        assert not [event for event in world.settle() if isinstance(event, ReplicaLoadFailed)]
    world.later(119).settle()
    assert world.replicas("x") == [("n1", "placed")]
    world.later(1).settle()
    assert world.replicas("x") == []


def test_what_waits_on_a_lost_node_is_left_to_its_grace() -> None:
    """C7, N9: nobody there can be late before ten minutes of silence are over."""
    lost = NodeLost(node="n1", incarnation=incarnation_of("n1"), silent_seconds=61, grace_seconds=600)
    for history in (a_placed_replica(R1), a_loading_replica(R1), [*a_ready_replica(R1), *a_drain(R1, seconds=60)]):
        world = World(*an_approved_node(), *a_model(), *history)
        world.beat()
        world.append(lost)
        for _ in range(5):
            assert world.after(119).settle() == []
        world.after(6).settle()
        assert [event.reason for event in world.of(ReplicaUnloaded)] == ["node_lost"]  # type: ignore[union-attr]


def test_a_node_that_was_lost_may_tell_what_became_of_its_loads() -> None:
    """C7, N9, X25: it comes back with all its replicas, though a deadline passed while nobody could hear it."""
    lost = NodeLost(node="n1", incarnation=incarnation_of("n1"), silent_seconds=61, grace_seconds=600)
    for history in (a_placed_replica(R1), a_loading_replica(R1)):
        world = World(*an_approved_node(), *a_model(), *history)
        world.append(lost)
        world.later(400)
        world.append(NodeRecovered(node="n1", incarnation=incarnation_of("n1")))
        back_ns = world.now_ns
        assert world.settle() == []
        assert next_due_ns(world.fleet, now_ns=world.now_ns) == back_ns + 120 * NANOSECONDS
        assert world.later(119).settle() == []
        world.later(1).settle()
        assert [event.reason for event in world.of(ReplicaUnloaded) + world.of(ReplicaDrainStarted)] == [  # type: ignore[union-attr]
            "load_expired"
        ]


def test_a_node_that_was_there_all_the_time_gets_no_more_of_it() -> None:
    """C7: it has just joined, and a load of its own short deadline is late all the same."""
    world = World(*an_approved_node(), *a_model(), *a_loading_replica(R1))
    assert told_by_ns(world.fleet, world.fleet.replicas[ReplicaId(R1)]) == 0


def test_an_operators_reservation_ends_by_itself() -> None:
    """R3."""
    holder = OperatorHolder("training", seconds=3_600)
    held = ReservationGranted(node="n1", reservation=ReservationId("v-9"), holder=holder, vram={0: GIB})
    world = World(*an_approved_node(), held)
    assert world.later(3_599).settle() == []
    assert world.later(1).settle() == [ReservationReleased(node="n1", reservations=(ReservationId("v-9"),))]


def test_a_replica_missing_from_two_heartbeats_in_a_row_is_ended() -> None:
    """R7, C6, X26: one may have crossed; the same heartbeat seen twice is one."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    world.beat(without=[R1])
    assert world.settle() == []
    assert world.settle() == []
    world.after(10).beat(without=[R1])
    world.settle()
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["reported_missing"]  # type: ignore[union-attr]


def test_a_silent_worker_or_one_that_lags_says_nothing() -> None:
    """C6: no replica ends for an unanswered question, nor for an answer from before it was there."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    for _ in range(3):
        world.after(10).beat(without=[R1], folded=2)
        assert world.settle() == []
    world.beat(without=[R1])
    world.settle()
    world.later(10)
    world.settle()
    world.after(10).beat(without=[R1])
    assert world.settle() == []


def test_a_worker_that_fell_silent_says_nothing_of_what_it_missed_before() -> None:
    """C6, N9: two heartbeats without a replica end it while the worker is there, and no more once it is lost."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    for _ in range(2):
        world.after(10).beat(without=[R1])
        world.view()
    world.after(61).append(NodeLost(node="n1", incarnation=incarnation_of("n1"), silent_seconds=61, grace_seconds=600))
    assert world.settle() == []


def test_another_lifes_heartbeat_says_nothing_of_this_one() -> None:
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    started = NodeIncarnationStarted(
        node="n1",
        incarnation=IncarnationId("second"),
        facts=some_facts(),
        secret_digest="digest",  # noqa: S106
    )
    world.beat(without=[R1])
    world.append(started)
    world.settle()
    world.after(10)
    assert world.settle() == []


def test_a_rollout_brings_the_new_one_up_before_the_old_one_goes() -> None:
    """R7, R6 surge: one at a time, never below the floor."""
    world = World(*three_nodes(), *a_model(), at_least(2))  # type: ignore[arg-type]
    world.live()
    world.append(redefined())
    world.route()
    for _ in range(20):
        world.settle()
        assert sum(phase == "ready" for _, phase in world.replicas()) >= 2
        world.work()
    assert [phase for _, phase in world.replicas()] == ["ready", "ready"]
    assert {state.revision for state in world.fleet.replicas.values()} == {world.fleet.models[M].revision}
    assert {event.reason for event in world.of(ReplicaUnloaded)} == {"superseded"}  # type: ignore[union-attr]


def test_without_capacity_the_old_one_goes_first_and_the_new_one_takes_its_place() -> None:
    """R6: one append holds both; the newcomer waits until the old one has ended."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), redefined())
    world.settle()
    newcomer = world.of(ReplicaPlaced)[-1]
    assert isinstance(newcomer, ReplicaPlaced)
    assert (newcomer.waits_for, newcomer.replica_index, newcomer.replaces) == ((R1,), 0, R1)
    assert sorted(phase for _, phase in world.replicas()) == ["draining", "placed"]
    world.live()
    assert world.replicas() == [("n1", "ready")]
    assert next(iter(world.fleet.replicas.values())).id == newcomer.replica
    assert world.fleet.nodes[NodeName("n1")].slots[M] == {0: newcomer.replica}


def test_a_model_that_is_not_to_surge_goes_out_before_its_newcomer_comes() -> None:
    """R6: `rollout: replace`, though there is room for both."""
    world = World(*an_approved_node("n1"), *an_approved_node("n2"), *a_model(), at_least(1, rollout="replace"))
    world.append(*a_ready_replica(R1), redefined())
    world.settle()
    assert world.replicas() == [("n1", "draining"), ("n1", "placed")]
    world.route()
    world.live()
    assert world.replicas() == [("n1", "ready")]


def test_a_restart_brings_fresh_ones_up_one_after_another_before_the_old_ones_go() -> None:
    """R6's way with the same revision; a load under way is fresh already, and asking twice changes nothing (I11)."""
    world = World(*three_nodes(), *a_model(), at_least(2))  # type: ignore[arg-type]
    world.live()
    before = set(world.fleet.replicas)
    world.append(*a_loading_replica("r-fresh", node="n3"))
    asked = restart(world.fleet, [*before, ReplicaId("r-fresh"), ReplicaId("r-gone")])
    assert {replica for event in asked for replica in event.replicas} == before  # type: ignore[union-attr]
    world.append(*asked)
    assert restart(world.fleet, before) == []
    world.route()
    for _ in range(30):
        world.settle()
        assert sum(phase == "ready" for _, phase in world.replicas()) >= 2
        world.work()
    assert not before & set(world.fleet.replicas)
    assert ReplicaId("r-fresh") in world.fleet.replicas
    assert [phase for _, phase in world.replicas()] == ["ready", "ready", "ready"]
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["requested", "requested"]  # type: ignore[union-attr]


def test_without_capacity_a_restart_takes_the_old_ones_place() -> None:
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    world.append(*restart(world.fleet, [R1]))
    world.live()
    assert world.replicas() == [("n1", "ready")]
    assert R1 not in world.fleet.replicas
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["requested"]  # type: ignore[union-attr]


def test_an_unscheduled_model_keeps_its_number_of_replicas_over_a_rollout() -> None:
    for rollout in ("surge", "replace"):
        world = World(*three_nodes(), *a_model(), *a_ready_replica("r-1", node="n1"))  # type: ignore[arg-type]
        world.append(*a_ready_replica("r-2", node="n2"), scheduled(Schedule(rollout=rollout)), redefined())
        world.live()
        assert [phase for _, phase in world.replicas()] == ["ready", "ready"], rollout
        assert {state.revision for state in world.fleet.replicas.values()} == {world.fleet.models[M].revision}


def test_an_old_revision_serves_on_while_the_new_one_fits_nowhere() -> None:
    """R6, P5: a definition that can't run is refused with its account and harms nobody."""
    spec = ModelSpec(command=("serve", "--huge"), vram=500 * GIB)
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1))
    world.append(ModelRedefined(model=M, spec=spec, revision=revision_of(spec), previous=revision_of(some_spec())))
    world.live()
    assert world.replicas() == [("n1", "ready")]
    assert len(world.of(ModelPlacementRefused)) == 1


def test_a_new_revision_does_not_take_a_place_that_its_groups_forbid() -> None:
    """R5, R6, X8: the old one has no group and serves on beside the group's holder; the new one would break it."""
    world = World(
        *an_approved_node(vram=2 * GIB, slots=1),
        *a_model("other", some_spec(groups=("h",))),
        *a_ready_replica("r-2", model="other", groups=("h",)),
        *a_model(),
        *a_ready_replica(R1),
        at_least(1),
    )
    world.append(redefined(concurrency_groups=("h",)))
    world.live()
    assert world.replicas() == [("n1", "ready")]
    assert R1 in world.fleet.replicas


def test_a_load_of_an_old_revision_is_stopped_before_it_serves() -> None:
    """R6."""
    world = World(*an_approved_node(), *a_model(), *a_loading_replica(R1), redefined())
    world.settle()
    assert [event.reason for event in world.of(ReplicaDrainStarted)] == ["superseded"]  # type: ignore[union-attr]


def test_a_frozen_reconciler_starts_nothing_and_still_finishes_ends() -> None:
    """Freeze is hands off, not a dead man's hand: drains and deadlines go on."""
    frozen = FleetSettingsChanged(settings=Settings(reconciler_frozen=True), changed=("reconciler_frozen",))
    world = World(*an_approved_node(), *a_model(), at_least(2), *a_ready_replica(R1), *a_drain(R1), frozen)
    world.live()
    assert world.replicas() == []


def test_every_end_carries_its_reason_and_every_choice_its_decision() -> None:
    """I12, R7."""
    world = World(*an_approved_node(), *a_model(), at_least(1, 1), *a_ready_replica(R1, index=0))
    world.append(NodeDrainStarted(node="n1", deadline_seconds=600))
    world.settle()
    for event in world.of(ReplicaDrainStarted):
        assert isinstance(event, ReplicaDrainStarted)
        assert isinstance(event.decision, Decision)
        assert event.decision.outcome


def test_a_newcomer_that_ends_first_gives_the_slot_back_to_the_one_it_waited_for() -> None:
    """R2, X21: the old replica's process is there until it has stopped, and nobody else may take its slot."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), redefined())
    world.route(r_1=1)
    world.settle()
    world.append(*remove(world.fleet, model=M))
    assert world.replicas() == [("n1", "draining")]
    assert world.fleet.nodes[NodeName("n1")].slots[M] == {0: R1}
    world.route()
    world.live()
    assert world.replicas() == []
    assert not world.fleet.nodes[NodeName("n1")].slots


def test_a_spread_that_fails_for_another_reason_on_each_node_is_refused_once() -> None:
    """C3, P5: told node by node, each refusal would be news to the other, for ever."""
    world = World(
        *an_approved_node("n1"),
        *an_approved_node("n2", vram=1 * GIB),
        *a_model("a"),
        *a_ready_replica(model="a", groups=("g",)),
        *a_model("m", some_spec(vram=2 * GIB, groups=("g",))),
        scheduled(Schedule(mode=SpreadAll())),
    )
    world.settle()
    (refused,) = [event for event in world.told if isinstance(event, ModelPlacementRefused)]
    assert {count.filter for count in refused.decision.filters} == {"concurrency_group", "vram"}
