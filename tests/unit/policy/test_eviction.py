"""Making room: who goes, who stays, and what is told of both (rules P3, P4, P5, C8, R5, R7)."""

from typing import Any

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelReplicaDraining, ModelScheduleSet
from modelyard_events.node import NodeVramBudgetOverridden
from modelyard_events.replica import EndReason, ReplicaDrainStarted, ReplicaLoadFailed, ReplicaPlaced
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes, Fraction, VramBudget
from modelyard_events.spec import Autoscale, Schedule, SpreadAll
from modelyard_projections.fleet import Placed
from modelyard_services.policy.fitting import OneMore, one_more
from modelyard_services.policy.models import define
from modelyard_services.policy.placement import Outcome, Refused, Request, place
from modelyard_services.policy.readings import NodeReading, Readings
from modelyard_services.policy.searcher import PLAIN
from tests.support.given import (
    GIB,
    SECOND_NS,
    START_NS,
    a_drain,
    a_loading_replica,
    a_model,
    a_ready_replica,
    an_approved_node,
    some_spec,
)
from tests.support.world import World

M = ModelName("m")
NOW_NS = START_NS + 1_000 * SECOND_NS
"""When `m` is asked for; the replicas below were ready at the start, so none is young."""


def a_node(node: str = "n1", *, vram: int = 16 * GIB, slots: int = 2, **also: Any) -> list[AnyEvent]:
    return an_approved_node(node, vram=vram, slots=slots, **also)


def a_tenant(model: str, vram: int = 8 * GIB, *, node: str = "n1", **spec: Any) -> list[AnyEvent]:
    """A model with one ready replica `r-<model>`, which has been there for long."""
    own = some_spec(vram=vram, **spec)
    device: dict[str, Any] = {"node": node, "vram": {0: vram}, "groups": own.concurrency_groups}
    return [*a_model(model, own), *a_ready_replica(f"r-{model}", model=model, **device)]


def wanted(vram: int = 8 * GIB, **spec: Any) -> list[AnyEvent]:
    return a_model(spec=some_spec(vram=vram, **spec))


def set_to(**settings: Any) -> AnyEvent:
    return FleetSettingsChanged(settings=Settings(**settings), changed=tuple(settings))


def a_floor(model: str, least: int) -> AnyEvent:
    return ModelScheduleSet(model=model, schedule=Schedule(mode=Autoscale(least)), source="api")


def seen(in_flight: dict[str, int] | None = None, **used_seconds: int) -> Readings:
    """All routers heard; uses by replica (`_` for `-`), in seconds since the start."""
    used = {ReplicaId(name.replace("_", "-")): START_NS + at * SECOND_NS for name, at in used_seconds.items()}
    busy = {ReplicaId(name): leases for name, leases in (in_flight or {}).items()}
    return Readings(in_flight=busy, last_used_ns=used, knows_routers=True)


def ask(*events: AnyEvent, readings: Readings | None = None, **also: Any) -> Outcome:
    """What comes of asking for one `m`, proven to fold."""
    world = World(*events)
    request = Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS, **also)
    outcome = place(world.fleet, seen() if readings is None else readings, request)
    world.append(*outcome.events)
    return outcome


def evicted(outcome: Outcome) -> dict[str, EndReason]:
    """Victims with their reasons."""
    assert outcome.refused is None, outcome.refused
    drains = [event for event in outcome.events if isinstance(event, ReplicaDrainStarted)]
    return {replica: drain.reason for drain in drains for replica in drain.replicas}


def newcomer(outcome: Outcome) -> ReplicaPlaced:
    return next(event for event in outcome.events if isinstance(event, ReplicaPlaced))


def refused(*events: AnyEvent, readings: Readings | None = None, **also: Any) -> Refused:
    outcome = ask(*events, readings=readings, **also)
    assert outcome.refused is not None, outcome.events
    assert outcome.replica is None
    return outcome.refused


def test_an_idle_replica_makes_room_in_the_same_append() -> None:
    """P3, X6: victim and newcomer in one batch; the newcomer waits for it and its deadline hasn't begun."""
    world = World(*a_node(), *a_tenant("a", 12 * GIB), *wanted())
    outcome = place(world.fleet, seen(), Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS))
    assert [type(event).__name__ for event in outcome.events] == [
        "ReplicaDrainStarted",
        "ModelReplicaDraining",
        "ReplicaPlaced",
        "ReservationGranted",
        "ModelReplicaAdded",
    ]
    assert evicted(outcome) == {"r-a": "evicted_memory"}
    assert newcomer(outcome).waits_for == ("r-a",)
    world.append(*outcome.events)
    placed = world.fleet.replicas[ReplicaId(str(outcome.replica))]
    assert placed.phase == Placed(deadline_ns=None)


def test_one_more_is_told_with_the_plan_that_it_takes() -> None:
    """P3, H2: who would end for it, before anybody does."""
    world = World(*a_node(), *a_tenant("a", 12 * GIB), *wanted())
    asked = Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS)
    told = one_more(world.fleet, seen(), asked, search=PLAIN)
    assert told == OneMore("placed on n1, in place of a#0", waits_for=(ReplicaId("r-a"),))


@pytest.mark.parametrize(
    ("holder", "obstacle", "way_out"),
    [
        ([*a_tenant("a", 12 * GIB, pinned=True)], "is pinned", "unpin a"),
        (
            [*a_tenant("a", 12 * GIB), a_floor("a", 1)],
            "is needed for its model's min_replicas",
            "lower min_replicas of a",
        ),
    ],
)
def test_one_more_is_refused_with_who_holds_the_node_and_what_would_help(
    holder: list[AnyEvent], obstacle: str, way_out: str
) -> None:
    """P5: the node, its holder, and the smallest change."""
    world = World(*a_node(), *holder, *wanted())
    asked = Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS)
    told = one_more(world.fleet, seen(), asked, search=PLAIN)
    assert told.outcome.endswith(f"on n1, a#0 {obstacle}"), told
    assert told.unblock == f"free 4.0 GiB of VRAM on n1, or {way_out}"
    assert told.waits_for == ()


def test_an_eviction_guards_the_victims_model() -> None:
    """DESIGN 2: else two evictions on two nodes take a model below its floor."""
    outcome = ask(*a_node(), *a_tenant("a", 12 * GIB), *wanted())
    assert ModelReplicaDraining(model="a", replicas=(ReplicaId("r-a"),), reason="evicted_memory") in outcome.events


def test_the_account_of_an_eviction_names_victims_and_figures() -> None:
    """H2: who, how large, when last of use, for whom."""
    outcome = ask(*a_node(), *a_tenant("a", 12 * GIB), *wanted(), readings=seen(r_a=100))
    drain = next(event for event in outcome.events if isinstance(event, ReplicaDrainStarted))
    assert drain.decision is not None
    assert drain.decision.kind == "eviction"
    assert drain.decision.outcome == "a#0 on n1 made room for m"
    assert drain.decision.figures == {
        "newcomer": "m",
        "victims": 1,
        "a#0.vram": 12 * GIB,
        "a#0.last_used_ns": START_NS + 100 * SECOND_NS,
    }
    assert newcomer(outcome).decision.outcome == "placed on n1, in place of a#0"


def test_what_fits_evicts_nobody() -> None:
    """P3: only if nothing fits."""
    full, free = a_node("n1"), a_node("n2")
    outcome = ask(*full, *free, *a_tenant("a", 16 * GIB), *wanted())
    assert evicted(outcome) == {}
    assert newcomer(outcome).node == "n2"


def test_the_least_recently_used_goes() -> None:
    """P3: and nobody who isn't needed."""
    history = [*a_node(vram=24 * GIB), *a_tenant("a"), *a_tenant("b"), *a_tenant("c"), *wanted()]
    assert set(evicted(ask(*history, readings=seen(r_a=300, r_b=100, r_c=200)))) == {"r-b"}
    assert set(evicted(ask(*history, readings=seen(r_a=100, r_b=300, r_c=200)))) == {"r-a"}


def test_an_unknown_use_counts_from_the_load() -> None:
    """P3: never used is not used at the beginning of time."""
    world = World(*a_node(), *a_tenant("a"), *wanted())
    world.after(100).append(*a_tenant("b"))
    request = Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS)
    assert set(evicted(place(world.fleet, seen(r_a=99), request))) == {"r-a"}
    assert set(evicted(place(world.fleet, seen(r_a=101), request))) == {"r-b"}


def test_a_small_old_one_stays_where_a_later_one_is_needed_anyway() -> None:
    """P3: a plan holds nobody without whom it would do."""
    history = [*a_node(vram=10 * GIB), *a_tenant("a", 2 * GIB), *a_tenant("b"), *wanted()]
    assert set(evicted(ask(*history, readings=seen(r_a=100, r_b=200)))) == {"r-b"}


def test_by_size_the_fewest_and_largest_go() -> None:
    """P3: size-aware mode."""
    tenants = [*a_tenant("a", 4 * GIB), *a_tenant("b", 4 * GIB), *a_tenant("c", 8 * GIB)]
    history = [*a_node(), *tenants, *wanted()]
    used = seen(r_a=100, r_b=200, r_c=300)
    assert set(evicted(ask(*history, readings=used))) == {"r-a", "r-b"}
    assert set(evicted(ask(*history, set_to(eviction_order="size"), readings=used))) == {"r-c"}


def test_the_plan_stays_on_one_node() -> None:
    """P3: half on each of two nodes frees nothing."""
    nodes = [*a_node("n1", vram=8 * GIB), *a_node("n2", vram=8 * GIB)]
    tenants = [
        *a_tenant("a", 4 * GIB),
        *a_tenant("b", 4 * GIB),
        *a_tenant("c", 4 * GIB, node="n2"),
        *a_tenant("d", 4 * GIB, node="n2"),
    ]
    outcome = ask(*nodes, *tenants, *wanted(), readings=seen(r_a=100, r_c=150, r_d=200, r_b=300))
    assert set(evicted(outcome)) == {"r-c", "r-d"}


def test_victims_are_looked_for_inside_the_selector_only() -> None:
    """X7: the oldest of all stands on a node that the model may not use."""
    nodes = [*a_node("n1", vram=8 * GIB, labels={"tier": "gpu"}), *a_node("n2", vram=8 * GIB)]
    history = [*nodes, *a_tenant("a"), *a_tenant("b", node="n2"), *wanted()]
    outcome = ask(*history, readings=seen(r_a=500, r_b=1), selector=parse_selector("tier=gpu"))
    assert set(evicted(outcome)) == {"r-a"}
    assert refused(*history, selector=parse_selector("tier=none")).kind == "unsatisfiable"


def test_a_pinned_replica_is_never_evicted() -> None:
    """X7, P5: the refusal names it and what would help."""
    answer = refused(*a_node(), *a_tenant("whisper", 12 * GIB, pinned=True), *wanted())
    assert answer.kind == "exhausted"
    assert answer.message == "0/1 nodes: 1 vram (short by 4.0 GiB); on n1, whisper#0 is pinned"
    assert answer.unblock == "free 4.0 GiB of VRAM on n1, or unpin whisper"
    assert answer.held_up


def test_pinning_a_model_that_runs_protects_it_at_once() -> None:
    """X23: as defined now, not as it was when its replica was placed; and the same for unpinning."""
    world = World(*a_node(), *a_tenant("a", 12 * GIB), *wanted())
    request = Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS)
    world.append(*define(world.fleet, model=ModelName("a"), spec=some_spec(vram=12 * GIB, pinned=True)))
    assert place(world.fleet, seen(), request).refused is not None
    world.append(*define(world.fleet, model=ModelName("a"), spec=some_spec(vram=12 * GIB)))
    assert place(world.fleet, seen(), request).refused is None


def test_a_replica_with_requests_is_never_evicted() -> None:
    """I5, P4: the refusal names it."""
    answer = refused(*a_node(), *a_tenant("a", 12 * GIB), *wanted(), readings=seen({"r-a": 1}))
    assert answer.message.endswith("on n1, a#0 is serving requests")


def test_nobody_is_evicted_before_every_router_was_heard() -> None:
    """N9: no lease heard of isn't no lease."""
    answer = refused(*a_node(), *a_tenant("a", 12 * GIB), *wanted(), readings=Readings())
    assert answer.message.endswith("on n1, a#0 may be busy: not every router was heard yet")


def test_a_model_never_falls_below_its_floor() -> None:
    """X7, I5: of two with a floor of one, one may go; with a floor of two, none."""
    second = a_ready_replica("r-b", model="a", index=1, vram={0: 8 * GIB})
    history = [*a_node(), *a_tenant("a"), *second, *wanted()]
    one = ask(*history, a_floor("a", 1), readings=seen(r_a=100, r_b=50))
    assert set(evicted(one)) == {"r-b"}
    answer = refused(*history, a_floor("a", 2))
    assert "a#0 is needed for its model's min_replicas" in answer.message
    assert answer.unblock == "free 8.0 GiB of VRAM on n1, or lower min_replicas of a"
    assert refused(*history, *wanted(16 * GIB), a_floor("a", 1)).kind == "exhausted"


def test_a_replica_that_still_loads_is_no_reason_to_take_the_ready_one() -> None:
    """I5: the floor is of replicas that serve."""
    loading = a_loading_replica("r-b", node="n2", model="a", vram={0: 8 * GIB})
    history = [*a_node(vram=8 * GIB), *a_node("n2", vram=8 * GIB), *a_tenant("a"), *loading, *wanted()]
    assert refused(*history, a_floor("a", 1)).held_up


def test_a_model_that_is_everywhere_stays_everywhere() -> None:
    """C3: spread_all would place it anew at once."""
    spread = ModelScheduleSet(model="a", schedule=Schedule(mode=SpreadAll()), source="api")
    assert refused(*a_node(), *a_tenant("a", 12 * GIB), spread, *wanted()).held_up


def test_a_young_replica_is_protected_from_demands_for_memory() -> None:
    """P3: 60 s unless set otherwise."""
    history = [*a_node(), *a_tenant("a", 12 * GIB), *wanted()]
    early = Request(model=M, command=CommandId("c-1"), now_ns=START_NS + 30 * SECOND_NS)
    world = World(*history)
    answer = place(world.fleet, seen(), early).refused
    assert answer is not None
    assert answer.message.endswith("on n1, a#0 was loaded too recently")
    world.append(set_to(min_residency_seconds=20))
    assert set(evicted(place(world.fleet, seen(), early))) == {"r-a"}


def test_frozen_evictions_end_nobody() -> None:
    """DESIGN 6: freeze."""
    answer = refused(*a_node(), *a_tenant("a", 12 * GIB), *wanted(), set_to(evictions_frozen=True))
    assert answer.unblock == "free 4.0 GiB of VRAM on n1, or thaw evictions"


def test_whoever_is_leaving_anyway_is_waited_for_instead() -> None:
    """P3: nobody is evicted for memory that is being freed."""
    history = [*a_node(), *a_tenant("a"), *a_tenant("b"), *a_drain("r-a", model="a"), *wanted()]
    outcome = ask(*history)
    assert evicted(outcome) == {}
    assert newcomer(outcome).waits_for == ("r-a",)


def test_whoever_drains_with_requests_isnt_waited_for() -> None:
    """P3: it may take as long as its drain's deadline."""
    history = [*a_node(), *a_tenant("a"), *a_tenant("b"), *a_drain("r-a", model="a"), *wanted()]
    assert set(evicted(ask(*history, readings=seen({"r-a": 1})))) == {"r-b"}


@pytest.mark.parametrize("budget", [Bytes(12 * GIB), Fraction(0.75)])
def test_an_eviction_frees_enough_on_a_node_that_holds_more_than_its_budget(budget: VramBudget) -> None:
    """X7: what a budget lacks already isn't freed, of the node or of a device."""
    shrunk = NodeVramBudgetOverridden(node="n1", vram_budget=budget)
    tenants = [*a_tenant("a"), *a_tenant("b")]
    outcome = ask(*a_node(), *tenants, shrunk, *wanted(), readings=seen(r_a=100, r_b=200))
    assert set(evicted(outcome)) == {"r-a", "r-b"}


def test_memory_that_others_hold_isnt_freed_by_an_eviction() -> None:
    """R3, X7: another program's memory is still there when the victim has gone."""
    history = [*a_node(), *a_tenant("a", 4 * GIB), *wanted(14 * GIB)]
    measured = NodeReading({0: 8 * GIB}, {ReplicaId("r-a"): {0: 4 * GIB}})
    readings = Readings({NodeName("n1"): measured}, knows_routers=True)
    assert refused(*history, readings=readings).message == "0/1 nodes: 1 vram (short by 6.0 GiB)"


def test_each_gpu_is_freed_where_the_model_goes() -> None:
    """P3, P6: a victim elsewhere on the node frees nothing."""
    tenants = [
        *a_model("a", some_spec(vram=8 * GIB)),
        *a_ready_replica("r-a", model="a", vram={0: 8 * GIB}),
        *a_model("b", some_spec(vram=8 * GIB)),
        *a_ready_replica("r-b", model="b", vram={1: 8 * GIB}),
        *a_model("c", some_spec(vram=8 * GIB, pinned=True)),
        *a_ready_replica("r-c", model="c", vram={0: 8 * GIB}),
    ]
    outcome = ask(*a_node(gpus=2), *tenants, *wanted(16 * GIB), readings=seen(r_a=1, r_b=500))
    assert set(evicted(outcome)) == {"r-b"}
    assert newcomer(outcome).gpus == (1,)


def test_evicting_one_replica_leaves_its_siblings() -> None:
    """X4: the other replica of the model stays as it was."""
    second = a_ready_replica("r-b", model="a", index=1, vram={0: 8 * GIB})
    world = World(*a_node(), *a_tenant("a"), *second, *wanted())
    outcome = place(world.fleet, seen(r_a=1), Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS))
    world.append(*outcome.events)
    assert world.replicas("a") == [("n1", "draining"), ("n1", "ready")]


def test_a_holder_of_the_group_makes_way_however_young() -> None:
    """P4, R7: residency doesn't protect there."""
    history = [
        *a_node(),
        *a_tenant("a", groups=("heavy",)),
        *a_tenant("c", 4 * GIB),
        *wanted(4 * GIB, groups=("heavy",)),
    ]
    world = World(*history)
    outcome = place(world.fleet, seen(), Request(model=M, command=CommandId("c-1"), now_ns=START_NS))
    assert evicted(outcome) == {"r-a": "evicted_group"}


@pytest.mark.parametrize(
    ("holder", "also", "why"),
    [
        ({"pinned": True}, (), "is pinned"),
        ({}, (a_floor("a", 1),), "is needed for its model's min_replicas"),
    ],
)
def test_a_holder_of_the_group_that_may_not_go_is_named(
    holder: dict[str, Any], also: tuple[AnyEvent, ...], why: str
) -> None:
    """P4, X8: a hard constraint, never a preference."""
    answer = refused(*a_node(), *a_tenant("a", groups=("heavy",), **holder), *also, *wanted(4 * GIB, groups=("heavy",)))
    assert answer.message == f"0/1 nodes: 1 concurrency_group; on n1, a#0 {why}"
    assert answer.held_up


def test_a_busy_holder_of_the_group_is_named() -> None:
    """P4."""
    history = [*a_node(), *a_tenant("a", groups=("heavy",)), *wanted(4 * GIB, groups=("heavy",))]
    answer = refused(*history, readings=seen({"r-a": 2}))
    assert answer.unblock == "wait for a#0, which is serving requests"


def test_the_loaded_limit_is_held_at_placement() -> None:
    """C8, P4: one model at a time; the least recently used makes way, though there is memory enough."""
    history = [*a_node(), *a_tenant("a", GIB), *a_tenant("b", GIB), *wanted(GIB)]
    assert evicted(ask(*history)) == {}
    used = seen(r_a=200, r_b=100)
    assert evicted(ask(*history, set_to(max_loaded_models=2), readings=used)) == {"r-b": "evicted_lru"}
    both = evicted(ask(*history, set_to(max_loaded_models=1), readings=used))
    assert both == {"r-a": "evicted_lru", "r-b": "evicted_lru"}


def test_the_loaded_limit_counts_loads_under_way() -> None:
    """C8: and waits for them rather than to end them."""
    loading = [*a_model("a"), *a_loading_replica("r-a", model="a")]
    answer = refused(*a_node(), *loading, *wanted(GIB), set_to(max_loaded_models=1))
    assert answer.message == "0/1 nodes: 1 loaded_limit; on n1, a#0 is loading"


def test_a_second_replica_of_a_loaded_model_is_no_second_model() -> None:
    """C8: the limit is of models."""
    history = [*a_node(), *wanted(GIB), *a_ready_replica("r-m"), set_to(max_loaded_models=1)]
    assert evicted(ask(*history)) == {}


def test_residency_doesnt_protect_from_the_loaded_limit_but_the_old_go_first() -> None:
    """P4."""
    world = World(*a_node(), *a_tenant("a", GIB), *wanted(GIB), set_to(max_loaded_models=2))
    world.after(990).append(*a_tenant("b", GIB))
    request = Request(model=M, command=CommandId("c-1"), now_ns=NOW_NS)
    assert set(evicted(place(world.fleet, seen(r_a=999, r_b=991), request))) == {"r-a"}
    world.append(set_to(max_loaded_models=1))
    assert set(evicted(place(world.fleet, seen(r_a=999, r_b=991), request))) == {"r-a", "r-b"}


def test_a_newcomer_whose_victim_wont_end_fails_and_says_so() -> None:
    """P3: when the victim's drain, and then a forced stop, had their time."""
    world = World(*a_node(), *a_tenant("a", 12 * GIB), *wanted(), set_to(drain_deadline_seconds=100))
    world.after(1_000)
    outcome = place(world.fleet, seen(), Request(model=M, command=CommandId("c-1"), now_ns=world.now_ns))
    world.append(*outcome.events)
    world.later(100).settle()
    assert ("n1", "placed") in world.replicas()
    world.later(21).settle()
    assert world.replicas() == []
    assert world.replicas("a") == [("n1", "draining")]
    failure = next(event for event in world.told if isinstance(event, ReplicaLoadFailed))
    assert failure.detail == "a#0 (r-a), whose place it was to take, would not end"


def test_a_newcomer_loads_when_its_last_victim_has_ended() -> None:
    """P3: its deadline starts then."""
    world = World(*a_node(), *a_tenant("a"), *a_tenant("b"), *wanted(16 * GIB))
    world.after(1_000)
    outcome = place(world.fleet, seen(), Request(model=M, command=CommandId("c-1"), now_ns=world.now_ns))
    world.append(*outcome.events)
    world.later(1).live()
    assert (world.replicas("a"), world.replicas("b"), world.replicas()) == ([], [], [("n1", "ready")])
