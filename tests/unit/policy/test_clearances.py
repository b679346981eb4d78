"""What is known of a node follows what changes, in sentences; a property holds the whole (rules P3, P5)."""

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.eviction import Search
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.placement import Request, wish_of
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.searcher import PLAIN
from tests.support.given import GIB
from tests.support.world import World
from tests.unit.policy.test_eviction import NOW_NS, M, a_node, a_tenant, seen, set_to, wanted


def search(index: PlacementIndex, fleet: Fleet, readings: Readings, *, now_ns: int = NOW_NS) -> Search:
    """What the index answers, proven to be what trials find."""
    index.note(fleet, fleet.take_touched())
    wish = wish_of(fleet, Request(model=M, command=CommandId("c"), now_ns=now_ns))
    found = index.make_room(fleet, readings, wish)
    assert found == PLAIN.make_room(fleet, readings, wish)
    return found


def becomes_free_to_go(before: AnyEvent, after: AnyEvent) -> None:
    world, index = World(before, *a_node(), *a_tenant("a", 12 * GIB), *wanted()), PlacementIndex()
    assert search(index, world.fleet, seen()).plan is None
    world.append(after)
    assert search(index, world.fleet, seen()).plan is not None


def test_a_thaw_holds_at_once() -> None:
    becomes_free_to_go(set_to(evictions_frozen=True), set_to())


def test_a_shorter_residency_holds_at_once() -> None:
    becomes_free_to_go(set_to(min_residency_seconds=5_000.0), set_to(min_residency_seconds=10.0))


def test_a_replica_that_was_young_goes_when_its_time_has_come() -> None:
    """P3: nothing but time has passed."""
    world, index = World(*a_node(), *a_tenant("a", 12 * GIB), *wanted()), PlacementIndex()
    loaded_ns = max(state.loaded_ns or 0 for state in world.fleet.replicas.values())
    residency_ns = 60 * 10**9
    assert search(index, world.fleet, seen(), now_ns=loaded_ns + residency_ns - 1).plan is None
    assert search(index, world.fleet, seen(), now_ns=loaded_ns + residency_ns).plan is not None


def test_a_use_that_is_heard_changes_who_goes() -> None:
    """P3: least recently used first, over all nodes."""
    nodes = [*a_node("n1"), *a_node("n2")]
    tenants = [*a_tenant("a", 12 * GIB, node="n1"), *a_tenant("b", 12 * GIB, node="n2")]
    world, index = World(*nodes, *tenants, *wanted()), PlacementIndex()
    for readings, node in (
        (seen(r_a=10, r_b=20), "n1"),
        (seen(r_a=30, r_b=20), "n2"),
        (seen({"r-b": 1}, r_a=30), "n1"),
    ):
        plan = search(index, world.fleet, readings).plan
        assert plan is not None
        assert plan.node.name == node


def test_a_replica_whose_last_request_ends_is_the_first_to_go_where_it_was_used_least_recently() -> None:
    """P3: what a plan on its node cost so far is no bound any more."""
    nodes = [event for node in ("n1", "n2", "n3") for event in a_node(node)]
    homes = {"a": "n1", "b": "n1", "c": "n2", "d": "n2", "e": "n3", "f": "n3"}
    tenants = [event for model, node in homes.items() for event in a_tenant(model, node=node)]
    world, index = World(*nodes, *tenants, *wanted()), PlacementIndex()
    others = {"r-d": 1, "r-f": 1}
    for busy, node in ((others | {"r-a": 1}, "n2"), (others, "n1"), (others | {"r-a": 1}, "n2")):
        plan = search(index, world.fleet, seen(busy, r_a=10, r_b=40, r_c=20, r_e=30)).plan
        assert plan is not None
        assert plan.node.name == node
