"""One more under load, fewer when idle, and never both (rules C4, X16)."""

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, ReplicaId
from modelyard_events.model import ModelPlacementRefused, ModelScaled, ModelScheduleSet
from modelyard_events.replica import ReplicaDrainStarted, ReplicaPlaced, ReplicaUnloaded
from modelyard_events.spec import Autoscale, Schedule
from modelyard_events.telemetry import RouterReport
from modelyard_services.policy.reconcile import reconcile
from tests.support.given import GIB, SECOND_NS, a_model, a_ready_replica, an_approved_node, some_spec
from tests.support.world import World

M = ModelName("m")


def between(least: int, most: int, **options: object) -> ModelScheduleSet:
    schedule = Schedule(mode=Autoscale(least, most), **options)  # type: ignore[arg-type]
    return ModelScheduleSet(model=M, schedule=schedule, source="api")


def a_world(*schedule: AnyEvent, replicas: int = 1, slots: int = 8) -> World:
    """One node with that many ready replicas `r-0`, `r-1` …, and a router that is heard."""
    ready = [event for number in range(replicas) for event in a_ready_replica(f"r-{number}", index=number)]
    world = World(*an_approved_node(slots=slots), *a_model(), *ready, *schedule)
    world.route()
    return world


def placed(world: World) -> int:
    return len(world.of(ReplicaPlaced))


def drained(world: World) -> list[ReplicaId]:
    return [gone for event in world.of(ReplicaDrainStarted) for gone in event.replicas]  # type: ignore[union-attr]


def test_one_more_is_placed_when_every_ready_replica_is_busy_and_says_why() -> None:
    """C4, I12: by one, with the counts in its decision."""
    world = a_world(between(1, 4), replicas=2)
    world.route(r_0=1, r_1=3)
    world.settle()
    assert placed(world) == 3
    (scaled,) = world.of(ModelScaled)
    assert isinstance(scaled, ModelScaled)
    assert (scaled.previous, scaled.wanted, scaled.reason) == (2, 3, "every ready replica is busy")
    assert scaled.decision.figures == {"in_flight": 4, "floor": 1, "ceiling": 4}


def test_one_idle_replica_is_enough_to_stay() -> None:
    """C4."""
    world = a_world(between(1, 4), replicas=2)
    world.route(r_0=9)
    assert world.settle() == []


def test_the_next_one_waits_until_the_last_one_is_ready() -> None:
    """C4: a load of minutes under constant pressure brings one replica, not one a pass."""
    world = a_world(between(1, 8, target_in_flight=2.0))
    world.route(r_0=5)
    world.settle()
    for _ in range(3):
        world.later(15).route(r_0=5)
        assert world.settle() == []
    world.work()
    world.work()
    assert [phase for _, phase in world.replicas()] == ["ready", "ready"]
    (newcomer,) = world.fleet.replicas.keys() - {"r-0"}
    world.route(r_0=2, **{newcomer.replace("-", "_"): 2})  # type: ignore[arg-type]  # a made-up id is no other name
    assert world.settle() == []


def test_load_takes_nothing_above_its_ceiling_and_without_one_what_fits() -> None:
    """C2, C4: 0 is no limit but the capacity there is."""
    world = a_world(between(1, 2), replicas=2)
    world.route(r_0=1, r_1=1)
    assert world.settle() == []
    world = a_world(between(1, 0), replicas=2, slots=2)
    world.route(r_0=1, r_1=1)
    assert [type(event) for event in world.settle()] == [ModelPlacementRefused]
    assert placed(world) == 2


def test_a_target_is_held_by_the_mean_and_not_by_whether_all_are_busy() -> None:
    """C4: `target_in_flight` says how many requests a replica serves well at once."""
    world = a_world(between(1, 4, target_in_flight=4.0), replicas=2)
    world.route(r_0=4, r_1=4)
    assert world.settle() == []
    world.route(r_0=9, r_1=0)
    world.settle()
    assert placed(world) == 3
    assert [event.reason for event in world.of(ModelScaled)] == ["4.5 requests in flight per replica, above 4"]  # type: ignore[union-attr]


def test_a_schedule_that_only_selects_nodes_scales_nothing() -> None:
    world = a_world(between(0, 0))
    world.route(r_0=9)
    assert world.settle() == []
    world.later(100_000).route()
    assert world.settle() == []


def test_two_deciders_under_the_same_load_place_one() -> None:
    """C1, C4: the second's decision is about a count that changed meanwhile."""
    world = a_world(between(1, 4))
    world.route(r_0=1)
    (rival,) = reconcile(world.view())
    world.one_pass()
    assert placed(world) == 2
    assert list(rival.decide(world.fleet, CommandId("rival"))) == []


def test_pressure_and_idleness_never_move_a_model_both_ways_in_one_pass() -> None:
    """C4: above the target by the mean, though one replica was idle for hours."""
    world = a_world(between(1, 4, target_in_flight=2.0), replicas=2)
    world.later(10_000).route(r_0=9)
    assert [action.key.split("/")[0] for action in reconcile(world.view())] == ["grow"]


@pytest.mark.parametrize("least", [0, 1])
def test_idle_replicas_go_down_to_one_and_only_an_idle_timeout_ends_the_last(least: int) -> None:
    """C4: `min_replicas: 0` alone keeps one warm."""
    world = a_world(between(least, 4), replicas=3)
    world.later(301).route()
    world.settle()
    assert sorted(drained(world)) == ["r-1", "r-2"]
    assert [(event.previous, event.wanted) for event in world.of(ModelScaled)] == [(3, 2), (2, 1)]  # type: ignore[union-attr]


def test_each_way_down_says_why_in_the_models_own_history() -> None:
    """C1: idle above the floor, above a ceiling that came down, and idle for a timeout."""
    ways: list[tuple[ModelScheduleSet, float, str]] = [
        (between(1, 4), 301, "idle for 300 s above its floor"),
        (between(0, 1), 1, "above its ceiling of 1"),
        (between(0, 4, idle_timeout_seconds=60.0), 61, "idle for the schedule's timeout of 60 s"),
    ]
    for schedule, seconds, reason in ways:
        world = a_world(schedule, replicas=2)
        world.later(seconds).route()
        world.one_pass()
        (scaled,) = world.of(ModelScaled)
        assert isinstance(scaled, ModelScaled)
        assert (scaled.previous, scaled.wanted, scaled.reason) == (2, 1, reason)
        assert scaled.decision.outcome == f"from 2 to 1: {reason}"


def test_min_replicas_zero_with_an_idle_timeout_scales_to_zero() -> None:
    """C4, R7."""
    world = a_world(between(0, 4, idle_timeout_seconds=900.0))
    world.later(899).route()
    assert world.settle() == []
    world.later(2).route()
    world.settle()
    world.work()
    world.live()
    assert world.replicas() == []
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["idle"]  # type: ignore[union-attr]


def test_an_idle_timeout_never_goes_below_the_floor() -> None:
    """C2, C4: ended there, it would be placed again at once, for ever."""
    world = a_world(between(1, 4, idle_timeout_seconds=60.0))
    world.later(10_000).route()
    assert world.settle() == []


def test_of_the_idle_the_highest_index_goes_first_and_then_the_least_recently_used() -> None:
    """C4."""
    world = World(*an_approved_node("n1", slots=3), *an_approved_node("n2", slots=3), *a_model())
    for name, node, index in (("r-a", "n1", 0), ("r-b", "n1", 1), ("r-c", "n2", 1), ("r-d", "n2", 0)):
        world.append(*a_ready_replica(name, node=node, index=index))
    world.append(between(1, 4))
    used = {ReplicaId("r-b"): world.now_ns + 20 * SECOND_NS, ReplicaId("r-c"): world.now_ns + 10 * SECOND_NS}
    world.demand.hear_router(RouterReport("router", world.fleet.sequence, last_used_ns=used), now_ns=world.now_ns)
    world.later(400).route()
    world.settle()
    assert drained(world)[:2] == ["r-c", "r-b"]
    assert len(drained(world)) == 3


def test_a_crashed_routers_leases_keep_nothing_busy_for_ever() -> None:
    """C4, X16, T2: what it had in flight is gone with it, so its replicas grow idle and go."""
    world = a_world(between(1, 4), replicas=2)
    world.route("crashed", r_0=3, r_1=3)
    world.later(400).route("router")
    world.settle()
    assert drained(world) == ["r-1"]


def test_no_router_heard_yet_is_not_idle() -> None:
    """C4, N9: a reconciler that just connected ends nothing for a silence of its own."""
    world = a_world(between(1, 4), replicas=2)
    world.later(400)
    world.connected_seconds = world.seconds - 1
    assert world.settle() == []


def test_a_pinned_replica_is_never_idle() -> None:
    """C4, C8."""
    pinned = [event for n in range(2) for event in a_ready_replica(f"r-{n}", index=n, pinned=True)]
    world = World(*an_approved_node(slots=8), *a_model(spec=some_spec(pinned=True)), *pinned)
    world.append(between(0, 4, idle_timeout_seconds=60.0))
    world.later(10_000).route()
    assert world.settle() == []


def test_load_alone_ends_nobody_else() -> None:
    """C4, P3: a floor may take the room of an idle neighbour, mere load may not."""
    neighbour = a_ready_replica("r-9", model="idle", index=0, vram={0: 20 * GIB})
    world = World(*an_approved_node(slots=8), *a_model("idle", some_spec(vram=20 * GIB)), *neighbour)
    world.append(*a_model(spec=some_spec(vram=4 * GIB)), *a_ready_replica("r-0", vram={0: 4 * GIB}), between(1, 4))
    world.later(3_600).route(r_0=1)
    assert [type(event) for event in world.settle()] == [ModelPlacementRefused]
    world.append(between(2, 4))
    world.live()
    assert [phase for _, phase in world.replicas()] == ["ready", "ready"]
    assert drained(world) == ["r-9"]
