"""No cheaper plan exists: the search against every subset of every node's replicas, judged by other code (P3, P4)."""

from collections.abc import Iterator
from itertools import combinations
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelScheduleSet
from modelyard_events.node import HOST_MEMORY, NodeWatchdogOverridden, WatchdogOverrides
from modelyard_events.replica import ReplicaDrainStarted, ReplicaPlaced
from modelyard_events.spec import Autoscale, ModelSpec, Schedule
from modelyard_projections.fleet import Draining, Fleet, NodeState, Ready, ReplicaState
from modelyard_services.policy.placement import Request, place, wish_of
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.survey import survey
from tests.support.given import GIB, SECOND_NS, START_NS, a_drain, a_model, a_ready_replica, an_approved_node
from tests.support.world import World

M = ModelName("m")
TENANTS = ("a", "b", "c", "d", "e", "f")
NOW_SECONDS = 1_000


class Tenant(msgspec.Struct, frozen=True):
    """A model with one replica somewhere, and how it stands."""

    node: int
    device: int
    gib: int
    groups: tuple[str, ...]
    pinned: bool
    least: int
    leases: int
    loaded_seconds: int
    used_seconds: int | None
    drains: bool

    @property
    def spec(self) -> ModelSpec:
        return ModelSpec(("serve",), vram=self.gib * GIB, concurrency_groups=self.groups, pinned=self.pinned)


rarely = st.sampled_from([False, False, False, True])
groups = st.sampled_from([(), (), ("g",), ("h",), ("g", "h")])
tenants = st.builds(
    Tenant,
    node=st.integers(0, 2),
    device=st.integers(0, 1),
    gib=st.integers(0, 8),
    groups=groups,
    pinned=rarely,
    least=st.sampled_from([0, 0, 0, 1]),
    leases=st.sampled_from([0, 0, 0, 1]),
    loaded_seconds=st.sampled_from([0, 100, 200, 970]),
    used_seconds=st.one_of(st.none(), st.integers(0, 990)),
    drains=rarely,
)
fleets = st.fixed_dictionaries(
    {
        "gpus": st.integers(0, 2),
        "gib": st.integers(4, 16),
        "tenants": st.lists(tenants, max_size=len(TENANTS)),
        "spec": st.builds(
            ModelSpec, st.just(("serve",)), vram=st.integers(1, 12).map(lambda g: g * GIB), concurrency_groups=groups
        ),
        "schedule": st.builds(
            Schedule, gpus=st.sampled_from([1, 1, 2]), placement=st.sampled_from(["spread", "binpack"])
        ),
        # Without residency wherever the limit holds: whom it takes of the young is told by sentences.
        "settings": st.one_of(
            st.builds(Settings, min_residency_seconds=st.just(60.0)),
            st.builds(Settings, min_residency_seconds=st.just(0.0), max_loaded_models=st.integers(0, 3)),
        ),
        # The first node's own, before the fleet's (C8).
        "watchdog": st.builds(WatchdogOverrides, max_loaded_models=st.one_of(st.none(), st.integers(0, 3))),
    }
)


@given(fleets)
@settings(max_examples=400, deadline=None)
def test_no_plan_is_cheaper_than_the_one_taken(drawn: dict[str, Any]) -> None:
    """P3: and where none is taken, there is none; X6, X7: it frees enough, and takes nobody it may not."""
    world, readings = _world(**drawn)
    fleet, wanted = world.fleet, Request(model=M, command=CommandId("c"), now_ns=_at(NOW_SECONDS))
    fits = bool(survey(fleet, readings, wish_of(fleet, wanted)).best)
    outcome = place(fleet, readings, wanted)
    expected = None if fits else min(_plans(fleet, readings, drawn), default=None)
    if expected is None:
        assert (outcome.refused is None) == fits, outcome.refused
        assert not [event for event in outcome.events if isinstance(event, ReplicaDrainStarted)]
        return
    placed = next(event for event in outcome.events if isinstance(event, ReplicaPlaced))
    assert (placed.node, sorted(placed.waits_for)) == (expected[2], sorted(expected[3]))


def _plans(fleet: Fleet, readings: Readings, drawn: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Every set of replicas of one node whose end would let the model in: cost first, then node and replicas."""
    for node in fleet.nodes.values():
        there = [fleet.replicas[replica] for replica in node.replicas]
        may_go = [state for state in there if _may_go(fleet, readings, state, drawn)]
        for size in range(1, len(may_go) + 1):
            for going in combinations(may_go, size):
                staying = [state for state in there if state not in going]
                if _takes(fleet, node, staying, drawn):
                    used = [_used(readings, state) for state in going if isinstance(state.phase, Ready)]
                    leaving = len(going) - len(used)
                    yield sorted(used, reverse=True), leaving, node.name, [state.id for state in going]


def _may_go(fleet: Fleet, readings: Readings, state: ReplicaState, drawn: dict[str, Any]) -> bool:
    if readings.in_flight.get(state.id):
        return False
    if isinstance(state.phase, Draining):
        return True
    options = fleet.models[state.model].options
    old: bool = _at(NOW_SECONDS) - (state.loaded_ns or 0) >= fleet.settings.min_residency_seconds * SECOND_NS
    in_group = bool(set(drawn["spec"].concurrency_groups) & set(state.groups))
    return not state.pinned and not options.min_replicas and (old or in_group)


def _takes(fleet: Fleet, node: NodeState, staying: list[ReplicaState], drawn: dict[str, Any]) -> bool:
    spec: ModelSpec = drawn["spec"]
    gpus: int = drawn["schedule"].gpus
    own = node.watchdog.max_loaded_models
    limit = fleet.settings.max_loaded_models if own is None else own
    if any(set(spec.concurrency_groups) & set(state.groups) for state in staying):
        return False
    if limit and len({state.model for state in staying}) >= limit:
        return False
    held = [fleet.reservations[state.reservation].vram for state in staying]
    each = -(-(spec.vram or 0) // gpus)
    free = {device: size - sum(one.get(device, 0) for one in held) for device, size in node.devices.items()}
    whole = node.budget - sum(sum(one.values()) for one in held)
    if gpus > 1 and HOST_MEMORY in free:
        return False
    return sum(size >= each for size in free.values()) >= gpus and whole >= each * gpus


def _world(  # noqa: PLR0913 - the parts of a fleet, as they are drawn
    *,
    gpus: int,
    gib: int,
    tenants: list[Tenant],
    spec: ModelSpec,
    schedule: Schedule,
    settings: Settings,
    watchdog: WatchdogOverrides,
) -> tuple[World, Readings]:
    world = World(
        FleetSettingsChanged(settings=settings, changed=("min_residency_seconds",)),
        *(event for node in range(3) for event in an_approved_node(f"n{node}", gpus=gpus, vram=gib * GIB)),
        *a_model(spec=spec),
        ModelScheduleSet(model=M, schedule=schedule, source="api"),
    )
    if not settings.min_residency_seconds:
        world.append(NodeWatchdogOverridden(node="n0", overrides=watchdog, changed=()))
    in_flight, used = {}, {}
    for name, tenant in sorted(zip(TENANTS, tenants, strict=False), key=lambda each: each[1].loaded_seconds):
        replica = ReplicaId(f"r-{name}")
        world.after(tenant.loaded_seconds - world.seconds).append(*_tenant(name, tenant, gpus))
        in_flight[replica] = tenant.leases
        if tenant.used_seconds is not None:
            used[replica] = _at(tenant.used_seconds)
    for name, tenant in zip(TENANTS, tenants, strict=False):
        if tenant.drains:
            world.append(*a_drain(f"r-{name}", node=f"n{tenant.node}", model=name))
    return world, Readings({}, in_flight, used, knows_routers=True)


def _tenant(name: str, tenant: Tenant, gpus: int) -> list[Any]:
    device = tenant.device % gpus if gpus else HOST_MEMORY
    schedule = Schedule(mode=Autoscale(tenant.least))
    return [
        *a_model(name, tenant.spec),
        ModelScheduleSet(model=name, schedule=schedule, source="api"),
        *a_ready_replica(
            f"r-{name}",
            node=NodeName(f"n{tenant.node}"),
            model=name,
            vram={device: tenant.gib * GIB} if tenant.gib else {},
            groups=tenant.groups,
            pinned=tenant.pinned,
        ),
    ]


def _used(readings: Readings, state: ReplicaState) -> int:
    return max(readings.last_used_ns.get(state.id, 0), state.loaded_ns or 0)


def _at(seconds: int) -> int:
    return START_NS + seconds * SECOND_NS
