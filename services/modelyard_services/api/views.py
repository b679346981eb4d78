"""The JSON that the API answers with: frozen shapes, built from the fleet and from telemetry.

Invariant: field names are the contract of DESIGN 6; sizes are bytes, times RFC 3339 UTC, unknown is null.
"""

from datetime import datetime
from typing import Literal, assert_never

import msgspec

from modelyard_events.envelope import instant
from modelyard_events.fleet import Settings
from modelyard_events.node import NodeType
from modelyard_events.replica import FootprintRule
from modelyard_events.reservation import Holder, OperatorHolder, ReplicaHolder
from modelyard_events.selectors import format_selector
from modelyard_events.sizes import format_budget
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, ScheduleSource, SpreadAll
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import (
    Draining,
    Fleet,
    IntentName,
    LivenessName,
    Lost,
    ModelState,
    NodeDraining,
    NodeState,
    PhaseName,
    Ready,
    ReplicaState,
    ReservationState,
)
from modelyard_services.api.watchdog_views import (
    ReplicaWatchdogView,
    WatchdogView,
    replica_watchdog_view,
    watchdog_view,
)

ReplicaStateName = PhaseName | Literal["unreachable"]


class LabelView(msgspec.Struct, frozen=True):
    value: str
    owner: Literal["system", "worker", "operator"]


class GpuView(msgspec.Struct, frozen=True):
    index: int
    vendor: str
    name: str
    vram_total: int
    vram_reserved: int
    vram_free: int


class BudgetView(msgspec.Struct, frozen=True):
    """`value` is in force; `source` says whose it is, `worker_value` what the worker itself reported."""

    value: str | None
    source: Literal["worker", "operator"]
    worker_value: str | None


class SlotsView(msgspec.Struct, frozen=True):
    value: int
    source: Literal["worker", "operator"]
    worker_value: int


class NodeView(msgspec.Struct, frozen=True):
    name: str
    node_type: NodeType
    admission: Literal["pending", "approved", "rejected"]
    liveness: LivenessName
    intent: IntentName
    incarnation: str
    address: str
    labels: dict[str, LabelView]
    gpus: list[GpuView]
    vram_total: int
    vram_budget: BudgetView
    vram_reserved: int
    vram_free: int
    ram_total: int | None
    ram_free: int | None
    disk_free: int | None
    last_heartbeat: datetime | None
    max_replicas_per_model: SlotsView
    watchdog: WatchdogView
    replicas: int
    drain_deadline: datetime | None
    since: datetime
    sequence: int


class ReplicaView(msgspec.Struct, frozen=True):
    id: str
    node: str
    model: str
    replica_index: int
    state: ReplicaStateName
    address: str | None
    gpus: list[int]
    vram: int
    vram_rule: FootprintRule
    in_flight: int | None
    last_used: datetime | None
    revision: str
    reason: str | None
    watchdog: ReplicaWatchdogView
    since: datetime


class ReservationView(msgspec.Struct, frozen=True):
    """VRAM held; `gpu` -1 stands for RAM on a node without GPUs."""

    id: str
    node: str
    holder: str
    replica: str | None
    reason: str | None
    vram: int
    gpus: dict[int, int]
    since: datetime
    until: datetime | None


class UnsatisfiableView(msgspec.Struct, frozen=True):
    reason: str
    until: datetime
    failed_passes: int


class ScheduleView(msgspec.Struct, frozen=True):
    """A schedule's entry as the configuration writes it, with where it came from."""

    model_name: str
    node_selector: str
    replicas: Literal["all"] | None
    min_replicas: int
    max_replicas: int
    placement: str
    max_per_node: int | None
    gpus: int
    idle_timeout_seconds: float | None
    busy_timeout_seconds: float | None
    target_in_flight: float | None
    rollout: str
    affinity: str
    source: ScheduleSource
    unsatisfiable: UnsatisfiableView | None
    model_defined: bool


class RefusalView(msgspec.Struct, frozen=True):
    """The last refusal told: `sequence` is its event, which holds the account."""

    kind: Literal["unsatisfiable", "exhausted"]
    filters: list[str]
    sequence: int


class ModelView(msgspec.Struct, frozen=True):
    name: str
    defined: bool
    revision: str | None
    spec: ModelSpec | None
    schedule: ScheduleView | None
    replicas: int
    ready: int
    last_refusal: RefusalView | None
    last_failure: str | None
    sequence: int


class SettingsView(msgspec.Struct, frozen=True):
    settings: Settings
    mass_loss: list[str]
    sequence: int


def node_view(
    node: NodeState, settings: Settings, demand: Demand | None, *, now_ns: int, monotonic_ns: int
) -> NodeView:
    """A node as the API shows it; readings come from its last heartbeat, if it is from this incarnation."""
    heard = demand.nodes.get(node.name) if demand else None
    heartbeat = heard.heartbeat if heard and heard.heartbeat.incarnation == node.incarnation else None
    silent_ns = monotonic_ns - heard.heard_ns if heard else 0
    return NodeView(
        name=node.name,
        node_type=node.node_type,
        admission=node.admission,
        liveness=node.liveness_name,
        intent=node.intent_name,
        incarnation=node.incarnation,
        address=node.facts.address,
        labels=_labels(node),
        gpus=_gpus(node),
        vram_total=node.vram_total,
        vram_budget=_budget(node),
        vram_reserved=node.vram_reserved,
        vram_free=node.vram_free,
        ram_total=node.facts.ram_total,
        ram_free=heartbeat.ram_free if heartbeat else None,
        disk_free=heartbeat.disk_free if heartbeat else None,
        last_heartbeat=instant(now_ns - silent_ns) if heartbeat else None,
        max_replicas_per_model=_slots(node),
        watchdog=watchdog_view(node.watchdog, settings),
        replicas=len(node.replicas),
        drain_deadline=instant(node.intent.deadline_ns) if isinstance(node.intent, NodeDraining) else None,
        since=instant(node.since_ns),
        sequence=node.sequence,
    )


def replica_view(replica: ReplicaState, fleet: Fleet, demand: Demand | None, *, monotonic_ns: int) -> ReplicaView:
    """A replica as the API shows it; `unreachable` while its node is lost (rule R1). Without `demand` it is past."""
    reservation = fleet.reservations.get(replica.reservation)
    used_ns = demand.last_used_ns.get(replica.id) if demand else None
    phase = replica.phase
    unreachable = isinstance(fleet.nodes[replica.node].liveness, Lost)
    return ReplicaView(
        id=replica.id,
        node=replica.node,
        model=replica.model,
        replica_index=replica.replica_index,
        state="unreachable" if unreachable else replica.phase_name,
        address=phase.address if isinstance(phase, Ready | Draining) else None,
        gpus=list(replica.gpus),
        vram=sum(reservation.vram.values()) if reservation else 0,
        vram_rule=replica.footprint_rule,
        in_flight=demand.in_flight(fleet.settings, replica.id, now_ns=monotonic_ns) if demand else None,
        last_used=instant(used_ns) if used_ns else None,
        revision=replica.revision,
        reason=phase.reason if isinstance(phase, Draining) else None,
        watchdog=replica_watchdog_view(fleet, replica),
        since=instant(replica.since_ns),
    )


def reservation_view(reservation: ReservationState) -> ReservationView:
    holder: Holder = reservation.holder
    match holder:
        case ReplicaHolder(replica):
            held_by = f"replica:{replica}"
            replica_id: str | None = str(replica)
            reason: str | None = None
        case OperatorHolder(name, reason=why):
            held_by, replica_id, reason = name, None, why
        case _:
            assert_never(holder)
    return ReservationView(
        id=reservation.id,
        node=reservation.node,
        holder=held_by,
        replica=replica_id,
        reason=reason,
        vram=sum(reservation.vram.values()),
        gpus=dict(reservation.vram),
        since=instant(reservation.since_ns),
        until=None if reservation.until_ns is None else instant(reservation.until_ns),
    )


def schedule_view(model: ModelState) -> ScheduleView | None:
    """The model's schedule, None where none is set."""
    if model.schedule is None:
        return None
    schedule: Schedule = model.schedule.schedule
    mode = schedule.mode
    autoscale = mode if isinstance(mode, Autoscale) else Autoscale()
    breaker = model.breaker
    return ScheduleView(
        model_name=model.name,
        node_selector=format_selector(schedule.node_selector),
        replicas="all" if isinstance(mode, SpreadAll) else None,
        min_replicas=autoscale.min_replicas,
        max_replicas=autoscale.max_replicas,
        placement=schedule.placement,
        max_per_node=schedule.max_per_node,
        gpus=schedule.gpus,
        idle_timeout_seconds=schedule.idle_timeout_seconds,
        busy_timeout_seconds=schedule.busy_timeout_seconds,
        target_in_flight=schedule.target_in_flight,
        rollout=schedule.rollout,
        affinity=schedule.affinity,
        source=model.schedule.source,
        unsatisfiable=(
            UnsatisfiableView(breaker.reason, instant(breaker.until_ns), breaker.failed_passes) if breaker else None
        ),
        model_defined=model.spec is not None,
    )


def model_view(model: ModelState, fleet: Fleet) -> ModelView:
    ready = sum(isinstance(replica.phase, Ready) for replica in fleet.replicas_of(model.name))
    refusal = model.refusal
    return ModelView(
        name=model.name,
        defined=model.spec is not None,
        revision=model.revision,
        spec=model.spec,
        schedule=schedule_view(model),
        replicas=len(model.replicas),
        ready=ready,
        last_refusal=RefusalView(refusal.kind, list(refusal.filters), refusal.sequence) if refusal else None,
        last_failure=model.last_failure,
        sequence=model.sequence,
    )


def settings_view(fleet: Fleet) -> SettingsView:
    return SettingsView(fleet.settings, list(fleet.mass_loss), fleet.settings_sequence)


def _labels(node: NodeState) -> dict[str, LabelView]:
    owners: dict[str, Literal["system", "worker", "operator"]] = dict.fromkeys(node.labels, "system")
    owners.update({str(key): "worker" for key in node.facts.labels})
    owners.update({str(key): "operator" for key in node.operator_labels})
    return {key: LabelView(value, owners[key]) for key, value in sorted(node.labels.items())}


def _gpus(node: NodeState) -> list[GpuView]:
    return [
        GpuView(
            index=gpu.index,
            vendor=gpu.vendor,
            name=gpu.name,
            vram_total=gpu.vram_total,
            vram_reserved=node.reserved.get(gpu.index, 0),
            vram_free=node.free_on(gpu.index),
        )
        for gpu in node.facts.gpus
    ]


def _budget(node: NodeState) -> BudgetView:
    return BudgetView(
        value=format_budget(node.vram_budget),
        source="operator" if node.budget_overridden else "worker",
        worker_value=format_budget(node.facts.vram_budget),
    )


def _slots(node: NodeState) -> SlotsView:
    return SlotsView(
        value=node.max_replicas_per_model,
        source="worker" if node.max_replicas_override is None else "operator",
        worker_value=node.facts.max_replicas_per_model,
    )
