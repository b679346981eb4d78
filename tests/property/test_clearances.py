"""Room made from what is known of all nodes is the room that a trial on each finds (rules P3-P5, X7)."""

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_events.envelope import AnyEvent
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelScheduleSet
from modelyard_events.node import (
    HOST_MEMORY,
    NodeCordoned,
    NodeLost,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, SpreadAll
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.ending import begin_drain, end
from modelyard_services.policy.filters import Wish
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.models import define
from modelyard_services.policy.readings import NodeReading, Readings
from modelyard_services.policy.searcher import PLAIN
from tests.support.given import (
    GIB,
    SECOND_NS,
    START_NS,
    a_loading_replica,
    a_model,
    a_ready_replica,
    an_approved_node,
    incarnation_of,
    record,
)

MODELS = ("a", "b", "c", "d", "e", "f")
NODES = ("n0", "n1", "n2", "n3", "n4", "n5")
DEVICES = 3
DEVICE_GIB = 16
NOW_SECONDS = 5_000


class Tenant(msgspec.Struct, frozen=True):
    """A replica somewhere, on one device or two."""

    node: str
    model: str
    vram: dict[int, int]
    loads: bool
    exclusive: bool


some_node, some_model = st.sampled_from(NODES), st.sampled_from(MODELS)
some_gib = st.integers(0, 12).map(lambda gib: gib * GIB)
held = st.dictionaries(st.integers(0, DEVICES - 1), some_gib, max_size=2)
seldom = st.sampled_from([False] * 7 + [True])
rarely = st.sampled_from([False] * 31 + [True])
needs = st.integers(0, DEVICE_GIB).map(lambda gib: gib * GIB)
groups = st.sampled_from([(), (), (), ("g",), ("h",), ("g", "h")])
tenants = st.lists(
    st.builds(Tenant, node=some_node, model=some_model, vram=held, loads=seldom, exclusive=rarely), max_size=24
)
specs = st.builds(ModelSpec, st.just(("serve",)), vram=some_gib, concurrency_groups=groups, pinned=seldom)
modes = st.sampled_from([Autoscale(), Autoscale(), Autoscale(1), Autoscale(2), SpreadAll()])
schedules = st.builds(Schedule, mode=modes, node_selector=st.sampled_from([(), parse_selector("zone=x")]))
wishes = st.builds(
    Wish,
    model=st.sampled_from([*MODELS, "m", "m", "m"]),
    now_ns=st.sampled_from([0, 30, 70, 3_000]).map(lambda ago: START_NS + (NOW_SECONDS - ago) * SECOND_NS),
    selector=st.sampled_from([(), parse_selector("zone=x")]),
    groups=groups,
    gpus=st.sampled_from([1, 1, 2]),
    per_gpu=st.one_of(needs, needs, needs, st.none()),
    max_per_node=st.sampled_from([None, None, 1]),
)
some_settings = st.builds(
    Settings,
    min_residency_seconds=st.sampled_from([0.0, 60.0, 4_980.0]),
    eviction_order=st.sampled_from(["lru", "size"]),
    max_loaded_models=st.sampled_from([0, 0, 1, 2, 4]),
    evictions_frozen=seldom,
)
seconds = st.integers(0, NOW_SECONDS).map(lambda at: START_NS + at * SECOND_NS)
replicas = st.integers(0, 23).map(lambda number: ReplicaId(f"r-{number}"))
some_readings = st.builds(
    Readings,
    nodes=st.dictionaries(
        some_node.map(NodeName),
        st.builds(
            NodeReading,
            vram_free=st.dictionaries(st.integers(0, DEVICES - 1), some_gib, max_size=DEVICES),
            visible=st.dictionaries(replicas, st.one_of(st.none(), held), max_size=4),
        ),
        max_size=2,
    ),
    in_flight=st.dictionaries(replicas, st.integers(0, 2), max_size=6),
    last_used_ns=st.dictionaries(replicas, seconds, max_size=24),
    knows_routers=seldom.map(lambda unknown: not unknown),
)
changes = st.one_of(
    st.tuples(st.just("define"), some_model, specs),
    st.tuples(st.just("schedule"), some_model, schedules),
    st.tuples(st.just("settings"), some_settings),
    st.tuples(st.just("drain"), replicas),
    st.tuples(st.just("end"), replicas),
    st.tuples(st.just("lose"), some_node),
    st.tuples(st.just("cordon"), some_node),
    st.tuples(st.just("cap"), some_node, some_gib),
    st.tuples(st.just("limit"), some_node, st.sampled_from([None, 0, 1, 2])),
    st.tuples(st.just("nothing")),
)
steps = st.lists(st.tuples(changes, some_readings, st.lists(wishes, min_size=1, max_size=3)), min_size=1, max_size=6)


# Two replicas on each of two devices, so that nothing fits unless somebody goes; then, a little at a time, what
# readings say otherwise than before. So most of what is kept of a node stays, and is what the answer comes from.
CROWD = 12
numbers = st.integers(0, CROWD - 1)
crowds = st.lists(st.integers(4, 8).map(lambda gib: gib * GIB), min_size=CROWD, max_size=CROWD)
first_readings = st.builds(
    Readings,
    in_flight=st.dictionaries(numbers.map(lambda number: ReplicaId(f"r-{number}")), st.just(1), min_size=4),
    last_used_ns=st.fixed_dictionaries({ReplicaId(f"r-{number}"): seconds for number in range(CROWD)}),
    knows_routers=st.just(True),
)
moves = st.one_of(
    st.tuples(st.just("use"), numbers, seconds),
    st.tuples(st.just("lease"), numbers, st.integers(0, 1)),
    st.tuples(st.just("lease"), numbers, st.integers(0, 1)),
    st.tuples(st.just("forget"), numbers),
    st.tuples(st.just("beat"), some_node, st.dictionaries(st.integers(0, 1), some_gib, max_size=2)),
    st.tuples(st.just("end"), numbers),
)
plain_wishes = st.builds(
    Wish,
    st.just(ModelName("m")),
    st.just(START_NS),
    gpus=st.sampled_from([1, 1, 2]),
    per_gpu=st.integers(9, DEVICE_GIB).map(lambda gib: gib * GIB),
)
orders = st.sampled_from(["lru", "lru", "lru", "size"])
ages = st.sampled_from([0.0, 0.0, 0.0, 5_060.0])
settled = st.builds(Settings, min_residency_seconds=ages, eviction_order=orders)


@given(
    crowds,
    st.tuples(*[specs] * len(MODELS)),
    settled,
    st.tuples(first_readings, st.lists(plain_wishes, min_size=1, max_size=2)),
    st.lists(st.lists(moves, min_size=1, max_size=3), min_size=2, max_size=8),
)
@settings(max_examples=300, deadline=None)
def test_as_readings_move_on_what_is_kept_of_a_node_makes_the_room_that_trials_find(
    sizes: list[int],
    specs: tuple[ModelSpec, ...],
    options: Settings,
    asked: tuple[Readings, list[Wish]],
    steps: list[list[Any]],
) -> None:
    """P3-P5: of a node that is otherwise as it was, only who was used, took a lease or lost one is looked at anew."""
    tenants = [
        Tenant(NODES[number // 4], MODELS[number % len(MODELS)], {number % 2: size}, loads=False, exclusive=False)
        for number, size in enumerate(sizes)
    ]
    fleet, index = _fleet(tenants, specs, 2, options), PlacementIndex()
    readings, wishes = asked
    for number, step in enumerate([[], *steps]):
        for move in step:
            readings = _moved(fleet, readings, *move)
        index.note(fleet, fleet.take_touched())
        for each in wishes:
            wish = msgspec.structs.replace(each, now_ns=START_NS + (NOW_SECONDS + number * 20) * SECOND_NS)
            assert index.make_room(fleet, readings, wish) == PLAIN.make_room(fleet, readings, wish)


def _moved(fleet: Fleet, readings: Readings, what: str, about: Any, to: Any = None) -> Readings:
    """The readings after one more thing happened; an end moves the fleet."""
    nodes, busy, used = dict(readings.nodes), dict(readings.in_flight), dict(readings.last_used_ns)
    replica = ReplicaId(f"r-{about}")
    match what:
        case "use":
            used[replica] = to
        case "lease":
            busy[replica] = to
        case "forget":
            busy.pop(replica, None)
            used.pop(replica, None)
        case "beat":
            nodes[NodeName(about)] = NodeReading(to)
        case _ if replica in fleet.replicas:
            record(fleet, *end(fleet, [replica], reason="crashed"))
        case _:
            pass  # it ended before
    return Readings(nodes, busy, used, knows_routers=True)


@given(tenants, st.tuples(*[specs] * len(MODELS)), st.integers(0, DEVICES), some_settings, steps)
@settings(max_examples=200, deadline=None)
def test_what_is_known_of_all_nodes_makes_the_room_that_trials_find(
    tenants: list[Tenant], specs: tuple[ModelSpec, ...], gpus: int, options: Settings, steps: list[Any]
) -> None:
    """P3-P5, X7: the plan to the last victim, or the same node with the same holders, however the fleet moved on."""
    fleet, index = _fleet(tenants, specs, gpus, options), PlacementIndex()
    for change, readings, wishes in steps:
        record(fleet, *_events(fleet, *change))
        index.note(fleet, fleet.take_touched())
        for wish in wishes:
            assert index.make_room(fleet, readings, wish) == PLAIN.make_room(fleet, readings, wish)


def _fleet(tenants: list[Tenant], specs: tuple[ModelSpec, ...], gpus: int, options: Settings) -> Fleet:
    fleet = Fleet()
    for number, node in enumerate(NODES):
        labels = {"zone": "xy"[number % 2]}
        record(fleet, *an_approved_node(node, gpus=gpus, vram=DEVICE_GIB * GIB, slots=3, labels=labels))
    for model, spec in zip(MODELS, specs, strict=True):
        record(fleet, *a_model(model, spec))
    record(fleet, FleetSettingsChanged(settings=options, changed=("eviction_order",)))
    for number, tenant in enumerate(tenants):
        record(fleet, *_tenant(fleet, f"r-{number}", tenant, gpus))
    return fleet


def _tenant(fleet: Fleet, replica: str, tenant: Tenant, gpus: int) -> list[AnyEvent]:
    model = ModelName(tenant.model)
    taken = fleet.nodes[NodeName(tenant.node)].slots.get(model, {})
    spec = fleet.models[model].spec
    devices = {device % gpus if gpus else HOST_MEMORY: size for device, size in tenant.vram.items()}
    build = a_loading_replica if tenant.loads else a_ready_replica
    return build(
        replica,
        node=NodeName(tenant.node),
        model=model,
        vram=devices,
        index=len(taken),
        groups=() if spec is None else spec.concurrency_groups,
        exclusive=tenant.exclusive,
    )


def _events(fleet: Fleet, what: str, *about: Any) -> list[AnyEvent]:  # noqa: C901, PLR0911 - one arm per kind
    if what in {"drain", "end"} and about[0] not in fleet.replicas:
        return []
    match what:
        case "define":
            return list(define(fleet, model=ModelName(about[0]), spec=about[1]))
        case "schedule":
            return [ModelScheduleSet(model=about[0], schedule=about[1], source="api")]
        case "settings":
            return [FleetSettingsChanged(settings=about[0], changed=("eviction_order",))]
        case "drain":
            return list(begin_drain(fleet, [about[0]], reason="requested", deadline_seconds=30))
        case "end":
            return list(end(fleet, [about[0]], reason="crashed"))
        case "lose":
            lost = NodeLost(node=about[0], incarnation=incarnation_of(about[0]), silent_seconds=60, grace_seconds=20)
            return [lost]
        case "cordon":
            return [NodeCordoned(node=about[0])]
        case "limit":
            own = WatchdogOverrides(max_loaded_models=about[1])
            return [NodeWatchdogOverridden(node=about[0], overrides=own, changed=("max_loaded_models",))]
        case "cap":
            return [NodeVramBudgetOverridden(node=about[0], vram_budget=Bytes(about[1]) if about[1] else None)]
        case _:
            return []
