"""A model that fits nowhere is told unsatisfiable, left alone, and tried again when that may help (rule C5)."""

from collections.abc import Callable

import msgspec
import pytest

from modelyard_events.decision import Decision
from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import CommandId, IncarnationId, ModelName, NodeName, ReservationId
from modelyard_events.model import (
    ModelDeclaredSatisfiable,
    ModelDeclaredUnsatisfiable,
    ModelPlacementRefused,
    ModelRedefined,
    ModelScheduleSet,
)
from modelyard_events.node import (
    NodeApproved,
    NodeCordoned,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeRecovered,
    NodeResumed,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.replica import ReplicaDrainStarted, ReplicaLoadFailed, ReplicaPlaced
from modelyard_events.reservation import OperatorHolder, ReservationGranted, ReservationReleased
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes
from modelyard_events.spec import Autoscale, Schedule, SpreadAll, revision_of
from modelyard_projections.fleet import Alive, Fleet
from modelyard_services.errors import ModelUnknownError
from modelyard_services.policy.breaker import clear_breaker
from modelyard_services.policy.due import next_due_ns
from modelyard_services.policy.ending import end
from modelyard_services.policy.models import define, remove
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.schedules import set_schedule
from tests.support.given import (
    GIB,
    SECOND_NS,
    Given,
    a_model,
    a_pending_node,
    a_ready_replica,
    an_approved_node,
    given,
    incarnation_of,
    some_facts,
    some_spec,
)
from tests.support.world import World

M = ModelName("m")
TIER = {"tier": "gpu"}


def wanting(least: int = 1, most: int = 0, selector: str = "tier=gpu") -> ModelScheduleSet:
    schedule = Schedule(mode=Autoscale(least, most), node_selector=parse_selector(selector))
    return ModelScheduleSet(model=M, schedule=schedule, source="api")


def a_world(*events: AnyEvent, vram: int = 40 * GIB) -> World:
    """A fleet with one matching node of 24 GiB and a model that is too large for it."""
    world = World(*an_approved_node("n1", labels=TIER), *events, *a_model(spec=some_spec(vram=vram)), wanting())
    world.route()
    return world


def passes(world: World, count: int, *, apart: float = 15.0) -> None:
    for _ in range(count):
        world.settle()
        heard = [node.name for node in world.fleet.nodes.values() if isinstance(node.liveness, Alive)]
        world.after(apart).beat(*heard)
        world.route()


def opened(world: World) -> World:
    passes(world, 3)
    assert world.fleet.models[M].breaker is not None
    return world


def test_an_installation_that_waits_for_its_first_node_lacks_no_capacity() -> None:
    """C5: nobody knows yet what it will have; the node that comes is used at once, with nothing to clear before."""
    world = World(*a_model(spec=some_spec(vram=GIB)), wanting())
    world.route()
    passes(world, 5)
    assert not world.of(ModelDeclaredUnsatisfiable)
    world.append(*an_approved_node("n1", labels=TIER))
    world.beat("n1")
    world.settle()
    assert [event.node for event in world.of(ReplicaPlaced)] == ["n1"]  # type: ignore[union-attr]
    assert not world.of(ModelDeclaredSatisfiable)


def closed_by(world: World) -> list[str]:
    return [event.cause for event in world.of(ModelDeclaredSatisfiable)]  # type: ignore[union-attr]


def is_open(world: World) -> bool:
    return world.fleet.models[M].breaker is not None


def test_three_failed_passes_in_a_row_declare_a_model_unsatisfiable_with_reason_and_until() -> None:
    """C5, H2: 5 minutes from the event's time, and the account with what would unblock it."""
    world = a_world()
    passes(world, 2)
    assert not is_open(world)
    world.settle()
    (event,) = world.of(ModelDeclaredUnsatisfiable)
    assert isinstance(event, ModelDeclaredUnsatisfiable)
    assert (event.failed_passes, event.cool_down_seconds) == (3, 300.0)
    assert event.reason == "0/1 nodes: 1 vram (short by 16.0 GiB)"
    assert event.decision.kind == "breaker"
    assert [(count.filter, count.nodes) for count in event.decision.filters] == [("vram", 1)]
    breaker = world.fleet.models[M].breaker
    assert breaker is not None
    assert breaker.until_ns == world.now_ns + 300 * SECOND_NS


def test_passes_that_events_start_within_moments_count_once() -> None:
    """C5: a drain under way is no lack of capacity for ever."""
    world = a_world()
    passes(world, 20, apart=0.02)
    assert not is_open(world)


def test_a_pass_that_finds_room_starts_the_count_anew() -> None:
    """C5: consecutive means consecutive."""
    held = ReservationGranted(
        node="n1", reservation=ReservationId("v-9"), holder=OperatorHolder("x"), vram={0: 20 * GIB}
    )
    world = a_world(held, vram=10 * GIB)
    passes(world, 2)
    world.append(ReservationReleased(node="n1", reservations=(ReservationId("v-9"),)))
    world.live()
    gone = next(iter(world.fleet.replicas))
    world.append(*end(world.fleet, [gone], reason="crashed"), held)
    passes(world, 2)
    assert not is_open(world)


def measured(world: World, free: int) -> World:
    """Quarter of a minute later the worker of n1 measures so much free memory."""
    world.later(15).route()
    heartbeat = msgspec.structs.replace(world.demand.nodes[NodeName("n1")].heartbeat, vram_free={0: free})
    world.demand.hear_node(heartbeat, now_ns=world.now_ns)
    return world


@pytest.mark.parametrize("by", ["reconciler", "operator"])
def test_a_success_between_two_failures_starts_the_count_anew(by: str) -> None:
    """C5: room that a measurement shows is no event, so only the success itself, whosesoever, can end the row."""
    world = a_world(*an_approved_node("elsewhere"), vram=10 * GIB)
    for _ in range(2):
        measured(world, GIB).settle()
    measured(world, 24 * GIB)
    if by == "reconciler":
        world.one_pass()
    else:
        request = Request(model=M, command=CommandId("load"), now_ns=world.now_ns)
        world.append(*place(world.fleet, world.readings(), request).events)
        assert world.settle() == []
    assert len(world.of(ReplicaPlaced)) == 1
    world.after(61).beat("elsewhere")
    world.append(NodeLost(node="n1", incarnation=incarnation_of("n1"), silent_seconds=61, grace_seconds=600))
    passes(world, 2)
    assert not is_open(world)
    passes(world, 1)
    assert is_open(world)


def test_while_it_is_open_nothing_is_placed_though_something_would_fit() -> None:
    """C5: blocks scale-up; its end is due, and then what fits is placed at once."""
    world = opened(a_world())
    breaker = world.fleet.models[M].breaker
    assert breaker is not None
    assert next_due_ns(world.fleet, now_ns=world.now_ns) == breaker.until_ns
    # As if telemetry had shown room: no event tells of it.
    world.fleet.nodes[NodeName("n1")].devices = {0: 80 * GIB}
    world.fleet.nodes[NodeName("n1")].budget = 80 * GIB
    world.watch = world.watch.__class__()
    assert world.settle() == []
    world.later(300).route()
    world.live()
    assert world.replicas() == [("n1", "ready")]
    assert closed_by(world) == ["its time is over"]


def test_after_its_end_the_count_starts_anew() -> None:
    """C5, X27: one failed pass after the cool-down trips nothing."""
    world = opened(a_world())
    world.later(300).route()
    passes(world, 2)
    assert closed_by(world) == ["its time is over"]
    assert not is_open(world)
    passes(world, 2)
    assert is_open(world)
    assert len(world.of(ModelDeclaredUnsatisfiable)) == 2


def test_it_blocks_scale_up_only() -> None:
    """C5: one too many on a node goes, though another node can't be filled."""
    twice = [event for n in (0, 1) for event in a_ready_replica(f"r-{n}", index=n, vram={0: 2 * GIB})]
    world = World(*an_approved_node("n1", slots=2), *an_approved_node("n2", vram=GIB), *twice)
    world.append(*a_model(spec=some_spec(vram=2 * GIB)))
    world.append(ModelScheduleSet(model=M, schedule=Schedule(mode=SpreadAll()), source="api"))
    world.route()
    opened(world)
    world.settle()
    assert [event.replicas for event in world.of(ReplicaDrainStarted)] == [("r-1",)]  # type: ignore[union-attr]


def test_it_lets_go_what_is_idle_above_the_floor() -> None:
    """C4, C5: whoever opened it, a surplus ends as if it weren't there."""
    idle = [event for n in range(2) for event in a_ready_replica(f"r-{n}", index=n)]
    world = World(*an_approved_node("n1", labels=TIER, slots=2), *a_model(), *idle, wanting(1, 4))
    decision = Decision(kind="breaker", outcome="no room", policy="test", basis=0)
    world.append(
        ModelDeclaredUnsatisfiable(
            model=M, reason="no room", failed_passes=3, cool_down_seconds=9_000.0, decision=decision
        )
    )
    world.later(301).route()
    world.settle()
    assert is_open(world)
    assert [event.replicas for event in world.of(ReplicaDrainStarted)] == [("r-1",)]  # type: ignore[union-attr]


def test_load_that_nobody_has_room_for_is_no_want_of_the_schedules() -> None:
    """C4, C5: a breaker it opened would keep the floor from making room for itself."""
    world = World(*an_approved_node("n1", labels=TIER), *a_model(), *a_ready_replica("r-0"), wanting(1))
    world.route(r_0=1)
    for _ in range(5):
        world.settle()
        world.later(15).route(r_0=1)
    assert world.of(ModelDeclaredUnsatisfiable) == []
    assert len(world.of(ModelPlacementRefused)) == 1


def test_a_placement_by_whoever_asks_for_it_closes_it() -> None:
    """C5: clears on success."""
    world = opened(a_world())
    world.append(*an_approved_node("n2", vram=80 * GIB))
    world.append(ModelScheduleSet(model=M, schedule=Schedule(mode=Autoscale(1, 0)), source="api"))
    request = Request(model=M, command=world.fleet.models[M].name, now_ns=world.now_ns)  # type: ignore[arg-type]
    world.append(*place(world.fleet, world.view().readings, request).events)
    assert closed_by(world) == ["placed on n2"]


def test_a_command_closes_it_and_says_when_there_was_nothing_to_close() -> None:
    """C5, X28."""
    world = opened(a_world())
    history = Given(world.fleet)
    history.when(lambda fleet: clear_breaker(fleet, model=M)).then(
        ModelDeclaredSatisfiable(model=M, cause="cleared by command")
    )
    history.when(lambda fleet: clear_breaker(fleet, model=M)).then_nothing()
    given().when(lambda fleet: clear_breaker(fleet, model=M)).then_raises(ModelUnknownError, "'m'")
    passes(world, 2)
    assert not is_open(world)


def test_a_change_of_spec_or_schedule_closes_it() -> None:
    """C5."""
    changes: list[Callable[[Fleet], list[AnyEvent]]] = [
        lambda fleet: define(fleet, model=M, spec=some_spec(vram=39 * GIB)),
        lambda fleet: remove(fleet, model=M),
        lambda fleet: set_schedule(fleet, model=M, schedule=Schedule(mode=Autoscale(2, 2)), source="api"),
    ]
    for change in changes:
        world = opened(a_world())
        world.append(*change(world.fleet))
        assert not is_open(world)


def test_a_change_of_the_model_starts_the_count_anew() -> None:
    """C5: two passes failed for what it was, none for what it is."""
    world = a_world()
    passes(world, 2)
    spec = some_spec(vram=30 * GIB)
    world.append(ModelRedefined(model=M, spec=spec, revision=revision_of(spec), previous=revision_of(spec)))
    passes(world, 2)
    assert not is_open(world)
    passes(world, 1)
    assert is_open(world)


CLEARING: dict[str, tuple[list[AnyEvent], list[AnyEvent], str]] = {
    "joined": ([], an_approved_node("n9", labels=TIER), "joined"),
    "restarted": (
        an_approved_node("n9", labels=TIER),
        [
            NodeIncarnationStarted(
                node="n9",
                incarnation=IncarnationId("n9-life-2"),
                facts=some_facts(labels=TIER),
                secret_digest="digest-n9",  # noqa: S106 - nobody's
            )
        ],
        "joined",
    ),
    "approved": (a_pending_node("n9", some_facts(labels=TIER)), [NodeApproved(node="n9")], "approved"),
    "recovered": (
        [
            *an_approved_node("n9", labels=TIER),
            NodeLost(node="n9", incarnation=incarnation_of("n9"), silent_seconds=61, grace_seconds=600),
        ],
        [NodeRecovered(node="n9", incarnation=incarnation_of("n9"))],
        "recovered",
    ),
    "resumed": (
        [*an_approved_node("n9", labels=TIER), NodeCordoned(node="n9")],
        [NodeResumed(node="n9")],
        "resumed",
    ),
    "label gained": (
        an_approved_node("n9"),
        [NodeLabelsChanged(node="n9", changed={"tier": "gpu"})],  # type: ignore[dict-item]
        "labels changed",
    ),
    "label lost": (
        [*an_approved_node("n9"), NodeLabelsChanged(node="n9", changed={"tier": "gpu"})],  # type: ignore[dict-item]
        [NodeLabelsChanged(node="n9", removed=("tier",))],  # type: ignore[arg-type]
        "labels changed",
    ),
    "capacity": (
        an_approved_node("n9", labels=TIER),
        [NodeVramBudgetOverridden(node="n9", vram_budget=Bytes(20 * GIB))],
        "capacity changed",
    ),
    "loaded limit": (
        an_approved_node("n9", labels=TIER),
        [NodeWatchdogOverridden(node="n9", overrides=WatchdogOverrides(max_loaded_models=0), changed=())],
        "capacity changed",
    ),
    "slots": (
        an_approved_node("n9", labels=TIER),
        [NodeMaxReplicasOverridden(node="n9", max_replicas_per_model=4)],
        "labels changed",  # `node.replica-slots` is a label too
    ),
    "memory freed": (
        [
            *an_approved_node("n9", labels=TIER),
            ReservationGranted(
                node="n9", reservation=ReservationId("v-9"), holder=OperatorHolder("x"), vram={0: 20 * GIB}
            ),
        ],
        [ReservationReleased(node="n9", reservations=(ReservationId("v-9"),))],
        "memory freed",
    ),
}


@pytest.mark.parametrize("name", CLEARING)
def test_events_of_nodes_that_the_model_selects_close_it(name: str) -> None:
    """C5: joined, approved, recovered, resumed, labels before or after, capacity, memory freed."""
    before, after, cause = CLEARING[name]
    world = opened(a_world(*before))
    world.append(*after)
    world.one_pass()
    assert closed_by(world) == [f"node n9: {cause}"]


@pytest.mark.parametrize("name", [name for name in CLEARING if not name.startswith("label")])
def test_an_unrelated_node_closes_nothing(name: str) -> None:
    """C5, X17: whatever happens to a node that the selector doesn't match."""
    before, after, _ = CLEARING[name]
    world = a_world(*before)
    elsewhere = parse_selector("tier=gpu, node.name != n9")
    world.append(
        ModelScheduleSet(model=M, schedule=Schedule(mode=Autoscale(1, 0), node_selector=elsewhere), source="api")
    )
    opened(world)
    world.append(*after)
    passes(world, 2)
    assert closed_by(world) == []
    assert is_open(world)


def test_a_label_of_an_unrelated_node_closes_nothing() -> None:
    """C5, X17."""
    world = opened(a_world(*an_approved_node("n9")))
    world.append(NodeLabelsChanged(node="n9", changed={"note": "anything"}))  # type: ignore[dict-item]
    passes(world, 2)
    assert closed_by(world) == []


def test_an_unrelated_nodes_changes_keep_no_breaker_from_opening() -> None:
    """C5, X17: the failed passes count on, however busy the rest of the fleet is."""
    world = a_world(*an_approved_node("n9"))
    for number in range(3):
        world.append(NodeLabelsChanged(node="n9", changed={"note": str(number)}))  # type: ignore[dict-item]
        passes(world, 1)
    assert is_open(world)


def test_what_made_room_is_kept_until_the_breaker_has_closed() -> None:
    """C5: an append that fails is tried again at the next pass, though the node stands still by then."""
    world = opened(a_world())
    world.append(*an_approved_node("n9", labels=TIER))
    world.view()
    world.later(5)
    world.one_pass()
    assert closed_by(world) == ["node n9: joined"]


def test_a_load_that_backs_off_is_no_lack_of_capacity() -> None:
    """C5, T6: in seconds the node may try again; five minutes would be a breaker's."""
    world = a_world(vram=GIB)
    for _ in range(10):
        world.settle()
        for failed in list(world.fleet.replicas):
            world.append(
                ReplicaLoadFailed(node="n1", replica=failed, detail="exit 1"),
                *end(world.fleet, [failed], reason="load_failed"),
            )
        world.later(6).route()
    assert len(world.of(ReplicaPlaced)) > 1
    assert world.of(ModelDeclaredUnsatisfiable) == []


def test_a_neighbour_that_only_has_to_get_older_is_no_lack_of_capacity() -> None:
    """C5, P3: it makes room within its minute of residency."""
    neighbour = a_ready_replica("r-9", model="idle", vram={0: 20 * GIB})
    world = a_world(*a_model("idle", some_spec(vram=20 * GIB)), vram=10 * GIB)
    world.append(*neighbour)
    passes(world, 5)
    assert world.of(ModelDeclaredUnsatisfiable) == []
    assert len(world.of(ReplicaPlaced)) == 2


def test_a_frozen_reconciler_fails_no_pass() -> None:
    """C5: it doesn't try."""
    world = a_world()
    world.append(FleetSettingsChanged(settings=Settings(reconciler_frozen=True), changed=("reconciler_frozen",)))
    passes(world, 5)
    assert not is_open(world)


def test_a_spread_that_misses_a_node_is_told_and_goes_on_when_a_node_joins() -> None:
    """C3, C5."""
    world = World(
        *an_approved_node("n1", labels=TIER),
        *an_approved_node("n2", labels=TIER, vram=GIB),
        *a_model(spec=some_spec(vram=2 * GIB)),
        ModelScheduleSet(
            model=M, schedule=Schedule(mode=SpreadAll(), node_selector=parse_selector("tier=gpu")), source="api"
        ),
    )
    world.live()
    opened(world)
    assert len(world.of(ReplicaPlaced)) == 1
    world.append(*an_approved_node("n3", labels=TIER))
    world.live()
    assert world.replicas() == [("n1", "ready"), ("n3", "ready")]


def test_figures_of_the_breaker_are_settings() -> None:
    """C5."""
    world = a_world()
    settings = Settings(breaker_failed_passes=2, breaker_cool_down_seconds=30.0)
    world.append(FleetSettingsChanged(settings=settings, changed=("breaker_failed_passes",)))
    passes(world, 2)
    breaker = world.fleet.models[M].breaker
    assert breaker is not None
    assert breaker.failed_passes == 2
    world.later(30).route()
    world.one_pass()
    assert closed_by(world) == ["its time is over"]
