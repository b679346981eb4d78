"""A node's own figures of the watchdog: set, sticky, before the fleet's and after the schedule's (rules C8, N11)."""

from collections.abc import Mapping

import pytest

from modelyard_events.decision import FilterCount
from modelyard_events.errors import InvalidValueError
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import CommandId, IncarnationId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelPlacementRefused, ModelScheduleSet
from modelyard_events.node import (
    NodeIncarnationStarted,
    NodeRegistered,
    NodeRemoved,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.replica import ReplicaDrainStarted, ReplicaPlaced
from modelyard_events.spec import Schedule
from modelyard_events.telemetry import RouterReport
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import NotFoundError
from modelyard_services.policy.limits import (
    Timeout,
    busy_timeout,
    busy_timeout_on,
    idle_timeout,
    max_loaded_models,
    reclaims_memory,
)
from modelyard_services.policy.node_watchdog import clear_watchdog, patch_watchdog, replace_watchdog
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.reconcile import reconcile
from tests.support.given import (
    GIB,
    SECOND_NS,
    Decide,
    a_model,
    a_placed_replica,
    a_ready_replica,
    an_approved_node,
    given,
    some_facts,
    some_spec,
)
from tests.support.world import World

N1, N2 = NodeName("n1"), NodeName("n2")
M = ModelName("m")
R1, R2 = ReplicaId("r-1"), ReplicaId("r-2")
FLEETS = Settings(idle_timeout_seconds=600.0, busy_timeout_seconds=300.0, max_loaded_models=2, reclaim_memory=True)


def patching(**patch: object) -> Decide:
    return lambda fleet: patch_watchdog(fleet, node=N1, patch=patch)


def own(node: str = "n1", **figures: object) -> NodeWatchdogOverridden:
    overrides = WatchdogOverrides(**figures)  # type: ignore[arg-type]
    return NodeWatchdogOverridden(node=node, overrides=overrides, changed=tuple(figures))


def fleets(settings: Settings = FLEETS) -> FleetSettingsChanged:
    return FleetSettingsChanged(settings=settings, changed=())


def drained(world: World) -> list[tuple[str, str]]:
    started = [event for event in world.told if isinstance(event, ReplicaDrainStarted)]
    return [(replica, event.reason) for event in started for replica in event.replicas]


def test_a_patch_changes_what_it_names_and_keeps_the_rest() -> None:
    """C8, I11: and nothing, where nothing differs."""
    history = given(*an_approved_node())
    history.when(patching(max_loaded_models=1)).then(own(max_loaded_models=1))
    whole = WatchdogOverrides(idle_timeout_seconds=60.0, max_loaded_models=1)
    history.when(patching(idle_timeout_seconds=60)).then(
        NodeWatchdogOverridden(node="n1", overrides=whole, changed=("idle_timeout_seconds",))
    )
    history.when(patching(max_loaded_models=1, idle_timeout_seconds=60.0)).then_nothing()
    left = WatchdogOverrides(idle_timeout_seconds=60.0)
    history.when(patching(max_loaded_models=None)).then(
        NodeWatchdogOverridden(node="n1", overrides=left, changed=("max_loaded_models",))
    )


def test_replacing_gives_back_what_it_does_not_name() -> None:
    history = given(*an_approved_node(), own(max_loaded_models=1, reclaim_memory=True))
    changed = ("busy_timeout_seconds", "max_loaded_models")
    wanted = WatchdogOverrides(busy_timeout_seconds=5.0, reclaim_memory=True)
    history.when(
        lambda fleet: replace_watchdog(
            fleet, node=N1, overrides={"busy_timeout_seconds": 5, "reclaim_memory": True, "max_loaded_models": None}
        )
    ).then(NodeWatchdogOverridden(node="n1", overrides=wanted, changed=changed))


def test_clearing_gives_all_back_and_says_so_where_there_is_nothing() -> None:
    """X28."""
    history = given(*an_approved_node(), own(max_loaded_models=1))
    cleared = NodeWatchdogOverridden(node="n1", overrides=WatchdogOverrides(), changed=("max_loaded_models",))
    history.when(lambda fleet: clear_watchdog(fleet, node=N1)).then(cleared)
    history.when(lambda fleet: clear_watchdog(fleet, node=N1)).then_raises(NotFoundError, "isn't overridden")


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"max_loaded_models": -1}, "max_loaded_models"),
        ({"max_loaded_models": 901}, "max_loaded_models"),
        ({"max_loaded_models": 1.5}, "max_loaded_models"),
        ({"idle_timeout_seconds": -1}, "idle_timeout_seconds"),
        ({"busy_timeout_seconds": "5m"}, "busy_timeout_seconds"),
        ({"busy_timeout_seconds": float("nan")}, "busy_timeout_seconds"),
        ({"reclaim_memory": 1}, "reclaim_memory"),
        ({"max_loaded_models": 1, "drain_deadline_seconds": 5}, "drain_deadline_seconds"),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(patch: Mapping[str, object], field: str) -> None:
    """C8: by the bounds of the fleet's settings; what is the fleet's alone is no node's."""
    given(*an_approved_node()).when(lambda fleet: patch_watchdog(fleet, node=N1, patch=patch)).then_raises(
        InvalidValueError, field
    )


def test_a_node_nobody_knows_is_named() -> None:
    """X28."""
    for decide in (patching(max_loaded_models=1), lambda fleet: clear_watchdog(fleet, node=N1)):
        given().when(decide).then_raises(NotFoundError, "n1")


def test_it_survives_the_workers_restart_and_ends_with_the_node() -> None:
    """C8, N11, N13, X2: a node that registers after its removal is a new one."""
    figures = own(max_loaded_models=1, idle_timeout_seconds=0.0)
    life, digest = IncarnationId("n1-life-2"), "digest-n1"
    again = NodeIncarnationStarted(node="n1", incarnation=life, facts=some_facts(), secret_digest=digest)
    history = given(*an_approved_node(), figures, again)
    assert history.fleet.nodes[N1].watchdog == figures.overrides
    removed = given(
        *an_approved_node(), figures, NodeRemoved(node="n1"), NodeRegistered(node="n1", node_type="backend")
    )
    assert removed.fleet.nodes[N1].watchdog == WatchdogOverrides()


def test_the_most_specific_that_is_set_holds() -> None:
    """C8: schedule, node, fleet; a node's 0 and false are set, and turn it off there."""
    both = [*an_approved_node("n1"), *an_approved_node("n2"), *a_model(), fleets()]
    both += [*a_ready_replica(R1, node=N1), *a_ready_replica(R2, node=N2)]
    off = own(idle_timeout_seconds=0.0, busy_timeout_seconds=9.0, max_loaded_models=0, reclaim_memory=False)
    fleet = given(*both, off).fleet
    here, there = fleet.replicas[R1], fleet.replicas[R2]
    assert (idle_timeout(fleet, here), busy_timeout(fleet, here)) == (Timeout(0.0, "node"), Timeout(9.0, "node"))
    assert (idle_timeout(fleet, there), busy_timeout(fleet, there)) == (
        Timeout(600.0, "fleet"),
        Timeout(300.0, "fleet"),
    )
    assert [max_loaded_models(fleet, fleet.nodes[name]) for name in (N1, N2)] == [0, 2]
    assert [reclaims_memory(fleet, fleet.nodes[name]) for name in (N1, N2)] == [False, True]
    schedule = Schedule(idle_timeout_seconds=60.0, busy_timeout_seconds=30.0)
    fleet = given(*both, off, ModelScheduleSet(model=M, schedule=schedule, source="api")).fleet
    found = [idle_timeout(fleet, fleet.replicas[each]) for each in (R1, R2)]
    assert found == [Timeout(60.0, "schedule")] * 2
    assert busy_timeout(fleet, fleet.replicas[R1]) == Timeout(30.0, "schedule")


def two_nodes(*figures: NodeWatchdogOverridden, settings: Settings) -> World:
    """`m` on `n1` as `r-1`, on `n2` as `r-2`."""
    nodes = [*an_approved_node("n1"), *an_approved_node("n2"), *a_model()]
    replicas = [*a_ready_replica(R1, node=N1), *a_ready_replica(R2, node=N2)]
    return World(*nodes, *replicas, fleets(settings), *figures)


def test_an_idle_timeout_of_one_node_ends_replicas_there_alone() -> None:
    """C8, R7: whether the fleet has none, or a longer one; and 0 keeps them where the fleet has one."""
    for settings, figures, gone in (
        (Settings(), own(idle_timeout_seconds=60.0), ["r-1"]),
        (Settings(idle_timeout_seconds=600.0), own(idle_timeout_seconds=60.0), ["r-1"]),
        (Settings(idle_timeout_seconds=60.0), own(idle_timeout_seconds=0.0), ["r-2"]),
        (Settings(idle_timeout_seconds=60.0), own(idle_timeout_seconds=600.0), ["r-2"]),
    ):
        world = two_nodes(figures, settings=settings)
        world.later(100).route()
        world.settle()
        assert drained(world) == [(replica, "idle") for replica in gone]


def test_an_end_for_an_idle_timeout_that_was_changed_meanwhile_is_taken_back() -> None:
    """C8: changed at run time, in force at once, also for what a pass had seen already."""
    world = two_nodes(own(idle_timeout_seconds=60.0), settings=Settings())
    world.later(100).route()
    view = world.view()
    (action,) = [each for each in reconcile(view) if each.reason.startswith("idle")]
    assert action.reason == "idle for the node's timeout of 60 s"
    world.append(own(idle_timeout_seconds=3_600.0))
    assert list(action.decide(world.fleet, action.command)) == []


def test_a_busy_timeout_of_one_node_ends_what_hangs_there_alone_though_it_is_pinned() -> None:
    """C8: by force; the decision says whose figure it was."""
    spec = some_spec(pinned=True)
    nodes = [*an_approved_node("n1"), *an_approved_node("n2"), *a_model(spec=spec)]
    replicas = [*a_ready_replica(R1, node=N1, pinned=True), *a_ready_replica(R2, node=N2, pinned=True)]
    world = World(*nodes, *replicas, fleets(Settings(busy_timeout_seconds=600.0)), own(busy_timeout_seconds=30.0))
    world.later(100)
    began = world.now_ns - 31 * SECOND_NS
    report = RouterReport("router", world.fleet.sequence, {R1: 1, R2: 1}, oldest_ns={R1: began, R2: began})
    world.demand.hear_router(report, now_ns=world.now_ns)
    world.settle()
    assert drained(world) == [("r-1", "busy_timeout")]
    (started,) = world.of(ReplicaDrainStarted)
    assert started.decision.outcome == "a request runs for longer than busy_timeout_seconds of the node"  # type: ignore[union-attr]


def test_a_node_reclaims_memory_by_its_own_word() -> None:
    """C8: on where the fleet's is off, off where the fleet's is on."""
    for settings, figures, gone in (
        (Settings(), own(reclaim_memory=True), ["r-1"]),
        (Settings(reclaim_memory=True), own(reclaim_memory=False), ["r-2"]),
    ):
        full = {0: 24 * GIB}
        nodes = [*an_approved_node("n1"), *an_approved_node("n2"), *a_model()]
        replicas = [*a_ready_replica(R1, node=N1, vram=full), *a_ready_replica(R2, node=N2, vram=full)]
        world = World(*nodes, *replicas, fleets(settings), figures)
        world.later(100).route()
        world.settle()
        assert drained(world) == [(replica, "evicted_memory") for replica in gone]


def placed_on(fleet: Fleet, *, node: NodeName | None = None) -> list[str]:
    """Whom `new` waits for where it is placed now; its own node first."""
    request = Request(model=ModelName("new"), command=CommandId("c"), now_ns=10**20, node=node)
    outcome = place(fleet, Readings(knows_routers=True), request)
    placed = [event for event in outcome.events if isinstance(event, ReplicaPlaced)]
    return [name for event in placed for name in (event.node, *event.waits_for)]


def test_a_limit_of_models_on_one_node_is_held_there_before_the_load_and_counts_loads() -> None:
    """C8, P1, P4: 1 is one model at a time; elsewhere the fleet's figure holds."""
    nodes = [*an_approved_node("n1"), *an_approved_node("n2"), *a_model("a"), *a_model("new", some_spec(vram=GIB))]
    ready = [*nodes, *a_ready_replica(R1, node=N1, model="a", vram={0: GIB})]
    assert placed_on(given(*ready).fleet, node=N1) == ["n1"]
    assert placed_on(given(*ready, own(max_loaded_models=1)).fleet, node=N1) == ["n1", "r-1"]
    assert placed_on(given(*ready, own(max_loaded_models=1)).fleet) == ["n2"]
    one_each = fleets(Settings(max_loaded_models=1))
    assert placed_on(given(*ready, one_each, own(max_loaded_models=2)).fleet, node=N1) == ["n1"]
    assert placed_on(given(*ready, one_each, own(max_loaded_models=0)).fleet, node=N1) == ["n1"]
    assert placed_on(given(*ready, one_each, own("n2", max_loaded_models=2)).fleet, node=N1) == ["n1", "r-1"]
    loading = [*nodes, *a_placed_replica(R1, node=N1, model="a", vram={0: GIB})]
    assert placed_on(given(*loading, own(max_loaded_models=2)).fleet, node=N1) == ["n1"]
    assert placed_on(given(*loading, own(max_loaded_models=1)).fleet, node=N1) == []


def test_a_model_that_is_loaded_already_takes_no_more_of_the_limit() -> None:
    """C8: the limit is of models, so a second replica of the only one there fits under 1."""
    one = [
        *an_approved_node("n1", slots=2),
        *a_model("new", some_spec(vram=GIB)),
        fleets(Settings(max_loaded_models=1)),
    ]
    fleet = given(*one, *a_ready_replica(R1, node=N1, model="new", vram={0: GIB})).fleet
    request = Request(model=ModelName("new"), command=CommandId("c"), now_ns=10**20, may_evict=False)
    assert place(fleet, Readings(knows_routers=True), request).replica is not None


def test_a_refusal_for_the_limit_tells_the_figures_of_the_nodes() -> None:
    """P5: one limit of 1 and one of 2 are 1 to 2."""
    history = [*an_approved_node("n1"), *an_approved_node("n2"), *a_model("new", some_spec(vram=GIB))]
    for node, models in (("n1", "a"), ("n2", "bc")):
        for model in models:
            placing = a_placed_replica(ReplicaId(f"r-{model}"), node=NodeName(node), model=model, vram={0: GIB})
            history += [*a_model(model), *placing]
    fleet = given(*history, own(max_loaded_models=1), fleets(Settings(max_loaded_models=2))).fleet
    request = Request(model=ModelName("new"), command=CommandId("c"), now_ns=10**20)
    (refused,) = place(fleet, Readings(knows_routers=True), request).events
    assert isinstance(refused, ModelPlacementRefused)
    assert refused.decision.filters == (FilterCount("loaded_limit", 2, low=1, high=2, examples=("n1", "n2")),)


def test_the_busy_timeout_is_known_also_of_what_is_gone() -> None:
    """C8: whoever held a request judges it when the replica, its model or its node may have gone."""
    fleet = given(*an_approved_node(), *a_model(), fleets(), own(busy_timeout_seconds=9.0)).fleet
    gone = NodeName("gone"), ModelName("gone")
    assert busy_timeout_on(fleet, model=M, node=N1) == Timeout(9.0, "node")
    assert busy_timeout_on(fleet, model=gone[1], node=N1) == Timeout(9.0, "node")
    assert busy_timeout_on(fleet, model=M, node=gone[0]) == Timeout(300.0, "fleet")
