"""What ends by itself once an operator asks for it (rule C8)."""

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.model import ModelScheduleSet
from modelyard_events.replica import ReplicaDrainStarted, ReplicaStopRequested, ReplicaUnloaded
from modelyard_events.spec import Autoscale, Schedule, SpreadAll
from modelyard_events.telemetry import RouterReport
from modelyard_services.policy.reconcile import reconcile
from tests.support.given import GIB, SECOND_NS, a_model, a_ready_replica, an_approved_node, some_spec
from tests.support.world import World

M = ModelName("m")
R1 = ReplicaId("r-1")


def set_to(**settings: object) -> FleetSettingsChanged:
    return FleetSettingsChanged(settings=Settings(**settings), changed=tuple(settings))  # type: ignore[arg-type]


def drained(world: World) -> list[tuple[str, str]]:
    started = [event for event in world.told if isinstance(event, ReplicaDrainStarted)]
    return [(replica, event.reason) for event in started for replica in event.replicas]


def a_busy(world: World, *, seconds: float) -> None:
    """A router reports that the oldest request of `r-1` began so long ago."""
    report = RouterReport(
        "router", world.fleet.sequence, {R1: 2}, oldest_ns={R1: world.now_ns - round(seconds * SECOND_NS)}
    )
    world.demand.hear_router(report, now_ns=world.now_ns)


def test_all_of_it_is_off_until_it_is_set() -> None:
    """C8."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1, vram={0: 24 * GIB}))
    world.later(100_000)
    a_busy(world, seconds=90_000)
    assert world.settle() == []


def test_an_idle_timeout_of_the_fleet_ends_what_nobody_scheduled() -> None:
    """C8, R7: a model loaded by hand, or by a request."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), set_to(idle_timeout_seconds=900.0))
    world.later(899).route()
    assert world.settle() == []
    world.later(1).route()
    world.live()
    assert [event.reason for event in world.of(ReplicaUnloaded)] == ["idle"]  # type: ignore[union-attr]


def test_an_idle_timeout_of_the_fleet_spares_floors_pins_and_what_runs_everywhere() -> None:
    """C2, C3, C8: ended there, they would be placed again, for ever."""
    spreading, floor = Schedule(mode=SpreadAll()), Schedule(mode=Autoscale(1, 0))
    cases: list[tuple[Schedule | None, bool]] = [(spreading, False), (floor, False), (None, True)]
    for schedule, pinned in cases:
        spec = some_spec(pinned=pinned)
        world = World(*an_approved_node(), *a_model(spec=spec), *a_ready_replica(R1, pinned=pinned))
        if schedule is not None:
            world.append(ModelScheduleSet(model=M, schedule=schedule, source="api"))
        world.append(set_to(idle_timeout_seconds=60.0))
        world.later(10_000).route()
        assert world.settle() == []


def test_a_models_own_idle_timeout_goes_before_the_fleets() -> None:
    """C8: per model, in both directions."""
    own = ModelScheduleSet(model=M, schedule=Schedule(idle_timeout_seconds=600.0), source="api")
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), own, set_to(idle_timeout_seconds=60.0))
    world.later(599).route()
    assert world.settle() == []
    world.later(1).route()
    world.settle()
    assert drained(world) == [("r-1", "idle")]


def test_a_request_that_runs_for_too_long_ends_its_replica_by_force_though_it_is_pinned() -> None:
    """C8, R7: by the oldest request's age; nothing is waited for, since that is what doesn't end."""
    world = World(*an_approved_node(), *a_model(spec=some_spec(pinned=True)), *a_ready_replica(R1, pinned=True))
    world.append(set_to(busy_timeout_seconds=300.0))
    world.later(1_000)
    a_busy(world, seconds=299)
    assert world.settle() == []
    a_busy(world, seconds=300)
    world.settle()
    assert drained(world) == [("r-1", "busy_timeout")]
    assert world.of(ReplicaStopRequested) == [ReplicaStopRequested(node="n1", replicas=(R1,), forced=True)]


def test_the_oldest_request_counts_whichever_router_holds_it() -> None:
    """C8: another router's young request makes nobody's old one younger, in whatever order they are heard."""
    for ages in ((400, 5), (5, 400)):
        world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), set_to(busy_timeout_seconds=300.0))
        world.later(1_000)
        for number, age in enumerate(ages):
            oldest = {R1: world.now_ns - age * SECOND_NS}
            report = RouterReport(f"router-{number}", world.fleet.sequence, {R1: 1}, oldest_ns=oldest)
            world.demand.hear_router(report, now_ns=world.now_ns)
        world.settle()
        assert drained(world) == [("r-1", "busy_timeout")]


def test_a_models_own_busy_timeout_goes_before_the_fleets() -> None:
    """C8: per model, in both directions, also while the fleet has none."""
    for fleets, own, spared, ended in ((0.0, 60.0, 59, 60), (30.0, 60.0, 59, 60), (600.0, 60.0, 59, 60)):
        schedule = ModelScheduleSet(model=M, schedule=Schedule(busy_timeout_seconds=own), source="api")
        world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), schedule)
        world.append(*([set_to(busy_timeout_seconds=fleets)] if fleets else []))
        world.later(1_000)
        a_busy(world, seconds=spared)
        assert world.settle() == []
        a_busy(world, seconds=ended)
        world.settle()
        assert drained(world) == [("r-1", "busy_timeout")]


def test_a_router_that_is_gone_keeps_no_request_running() -> None:
    """C8, X16: its oldest request ended with it."""
    world = World(*an_approved_node(), *a_model(), *a_ready_replica(R1), set_to(busy_timeout_seconds=300.0))
    a_busy(world, seconds=0)
    world.later(400).route("another")
    assert world.settle() == []


def a_full_node(*events: AnyEvent) -> World:
    """24 GiB, 23.5 of them held: by `a`, unused for longest, and by `b`."""
    held: list[AnyEvent] = [*an_approved_node()]
    for name, size in (("a", 12), ("b", 11)):
        held += [*a_model(name), *a_ready_replica(f"r-{name}", model=name, vram={0: size * GIB + GIB // 4})]
    world = World(*held, *events)
    used = {ReplicaId("r-b"): world.now_ns + SECOND_NS}
    world.demand.hear_router(RouterReport("router", world.fleet.sequence, last_used_ns=used), now_ns=world.now_ns)
    return world


def test_a_node_that_is_nearly_full_loses_its_least_recently_used_replica_and_one_alone() -> None:
    """C8: what is on its way out is waited for before the next one goes."""
    world = a_full_node(set_to(reclaim_memory=True))
    world.later(100).route()
    world.one_pass()
    # A request that was routed a moment before is still served there.
    world.route(r_a=1)
    world.settle()
    assert drained(world) == [("r-a", "evicted_memory")]
    world.route()
    world.live()
    world.later(100).route()
    world.live()
    assert drained(world) == [("r-a", "evicted_memory")]
    assert [state.id for state in world.fleet.replicas.values()] == ["r-b"]


def test_the_reclaimer_waits_until_more_than_95_percent_are_in_use() -> None:
    """C8: at 95 % of the budget nothing goes; a GiB more and one does."""
    for held, gone in ((19, []), (20, [("r-1", "evicted_memory")])):
        replica = a_ready_replica(R1, vram={0: held * GIB})
        world = World(*an_approved_node(vram=20 * GIB), *a_model(), *replica, set_to(reclaim_memory=True))
        world.later(100).route()
        world.settle()
        assert drained(world) == gone


def test_a_reclaimer_that_is_off_wants_nothing_and_undoes_what_it_wanted() -> None:
    """C8: off until it is set, and off at once when it is switched off before the end is appended."""
    assert not Settings().reclaim_memory
    world = a_full_node()
    world.later(100).route()
    assert reconcile(world.view()) == []
    world.append(set_to(reclaim_memory=True))
    (action,) = reconcile(world.view())
    world.append(set_to(reclaim_memory=False))
    assert list(action.decide(world.fleet, action.command)) == []


def test_the_reclaimer_spares_the_busy_the_pinned_and_the_young_and_obeys_a_freeze() -> None:
    """C8, I5."""
    world = a_full_node(set_to(reclaim_memory=True))
    world.later(59).route()
    assert world.settle() == []
    world.later(41).route(r_a=1)
    world.settle()
    assert drained(world) == [("r-b", "evicted_memory")]
    frozen = a_full_node(set_to(reclaim_memory=True, evictions_frozen=True))
    frozen.later(100).route()
    assert frozen.settle() == []
    pinned = a_full_node(*a_model("a", some_spec(pinned=True)), set_to(reclaim_memory=True))
    pinned.later(100).route()
    pinned.settle()
    assert drained(pinned) == [("r-b", "evicted_memory")]
