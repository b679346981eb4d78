"""What the fleet looks like at one sequence: nodes, replicas, reservations, models.

Invariant: each facet is its own type, so a drained node without a deadline or a ready replica without an
address can't be written. Times are the log's, in nanoseconds since 1970; sizes are bytes.
"""

from typing import Literal, assert_never

import msgspec

from modelyard_events.envelope import Actor
from modelyard_events.fleet import Role
from modelyard_events.ids import (
    EventId,
    IncarnationId,
    LabelKey,
    ModelName,
    NodeName,
    ReplicaId,
    ReservationId,
    Revision,
)
from modelyard_events.model import RefusalKind
from modelyard_events.node import HOST_MEMORY, NodeFacts, NodeType, WatchdogOverrides
from modelyard_events.replica import EndReason, FootprintRule, Process
from modelyard_events.reservation import Holder
from modelyard_events.sizes import Fraction, VramBudget, resolve_budget
from modelyard_events.spec import LaunchSpec, ModelSpec, Schedule, ScheduleSource

Admission = Literal["pending", "approved", "rejected"]
LivenessName = Literal["alive", "lost", "departed"]
IntentName = Literal["schedulable", "cordoned", "draining"]
PhaseName = Literal["placed", "loading", "ready", "draining"]
"""How rows, views and texts write a facet; the types carry what belongs to each."""


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    since_ns: int


class Lost(msgspec.Struct, frozen=True, tag="lost"):
    """Not heard; what it holds stays its own until the grace ends."""

    since_ns: int
    grace_until_ns: int


class Departed(msgspec.Struct, frozen=True, tag="departed"):
    since_ns: int


Liveness = Alive | Lost | Departed


class Schedulable(msgspec.Struct, frozen=True, tag="schedulable"):
    pass


class Cordoned(msgspec.Struct, frozen=True, tag="cordoned"):
    pass


class NodeDraining(msgspec.Struct, frozen=True, tag="draining"):
    """`finished` once the last replica ended; only a resume leaves this intent."""

    deadline_ns: int
    finished: bool = False


Intent = Schedulable | Cordoned | NodeDraining


class LoadFailures(msgspec.Struct, frozen=True):
    """Consecutive failed loads of one model on one node (rule T6)."""

    count: int
    last_ns: int


class NodeState(msgspec.Struct):
    """A node. `labels`, `devices`, `budget` and `slots` are derived, kept so that placement needn't recompute."""

    name: NodeName
    node_type: NodeType
    admission: Admission
    intent: Intent
    incarnation: IncarnationId
    liveness: Liveness
    facts: NodeFacts
    secret_digest: str
    since_ns: int
    sequence: int
    operator_labels: dict[LabelKey, str] = {}
    max_replicas_override: int | None = None
    budget_overridden: bool = False
    budget_override: VramBudget | None = None
    watchdog: WatchdogOverrides = WatchdogOverrides()
    load_failures: dict[ModelName, LoadFailures] = {}
    replicas: dict[ReplicaId, None] = {}
    reservations: dict[ReservationId, None] = {}
    slots: dict[ModelName, dict[int, ReplicaId]] = {}
    reserved: dict[int, int] = {}
    labels: dict[str, str] = {}
    devices: dict[int, int] = {}
    budget: int = 0

    @property
    def takes_replicas(self) -> bool:
        """Approved, alive, schedulable, and of the type that hosts models (rule N1)."""
        return (
            self.node_type == "backend"
            and self.admission == "approved"
            and isinstance(self.liveness, Alive)
            and isinstance(self.intent, Schedulable)
        )

    @property
    def liveness_name(self) -> LivenessName:
        match self.liveness:
            case Alive():
                return "alive"
            case Lost():
                return "lost"
            case Departed():
                return "departed"
            case _:
                assert_never(self.liveness)

    @property
    def intent_name(self) -> IntentName:
        match self.intent:
            case Schedulable():
                return "schedulable"
            case Cordoned():
                return "cordoned"
            case NodeDraining():
                return "draining"
            case _:
                assert_never(self.intent)

    @property
    def max_replicas_per_model(self) -> int:
        """The figure in force (rule N11)."""
        override = self.max_replicas_override
        return self.facts.max_replicas_per_model if override is None else override

    @property
    def vram_budget(self) -> VramBudget | None:
        """The budget in force (rule N11)."""
        return self.budget_override if self.budget_overridden else self.facts.vram_budget

    @property
    def vram_total(self) -> int:
        """All the memory that models may use, before any budget."""
        if self.facts.gpus:
            return sum(gpu.vram_total for gpu in self.facts.gpus)
        return self.facts.vram_total or 0

    @property
    def vram_reserved(self) -> int:
        return sum(self.reserved.values())

    @property
    def vram_free(self) -> int:
        """What the budget leaves (rule R3); negative when a cap shrank below what is placed."""
        return self.budget - self.vram_reserved

    def free_on(self, device: int) -> int:
        """Bytes free on one device within its own share of the budget."""
        return self.devices.get(device, 0) - self.reserved.get(device, 0)

    def derive(self) -> None:
        """Recompute labels, devices and budget after a change of facts or overrides."""
        budget = self.vram_budget
        totals = {gpu.index: gpu.vram_total for gpu in self.facts.gpus}
        if not totals and self.facts.vram_total:
            totals = {HOST_MEMORY: self.facts.vram_total}
        share = budget if isinstance(budget, Fraction) else None
        self.devices = {index: resolve_budget(share, total=total) for index, total in totals.items()}
        self.budget = resolve_budget(budget, total=self.vram_total)
        own = self.facts.labels | self.operator_labels
        self.labels = {str(key): value for key, value in own.items()} | self._system_labels()

    def _system_labels(self) -> dict[str, str]:
        """Rule N6."""
        labels = {
            "node.name": self.name,
            "node.type": self.node_type,
            "node.replica-slots": str(self.max_replicas_per_model),
        }
        if self.facts.gpus:
            largest = max(self.facts.gpus, key=lambda gpu: (gpu.vram_total, -gpu.index))
            labels["gpu.vendor"] = largest.vendor
            labels["gpu.vram"] = vram_bucket(largest.vram_total)
        return labels


_BUCKETS_GIB = ((80, "80GB+"), (48, "48GB"), (24, "24GB"), (16, "16GB"), (8, "8GB"))


def vram_bucket(vram_total: int) -> str:
    """The `gpu.vram` label of a GPU with that many bytes (rule N6)."""
    # Boards report a little less than their name says (an 80 GB card 79.6 GiB): round, or it lands a bucket low.
    gib = round(vram_total / 2**30)
    return next((label for least, label in _BUCKETS_GIB if gib >= least), f"{gib}GB")


class Placed(msgspec.Struct, frozen=True, tag="placed"):
    """Claimed; `deadline_ns` is None while victims are still waited for."""

    deadline_ns: int | None


class Loading(msgspec.Struct, frozen=True, tag="loading"):
    process: Process
    deadline_ns: int


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    process: Process
    address: str


class Draining(msgspec.Struct, frozen=True, tag="draining"):
    """No new leases. `stopping` once nothing holds it any more and the worker may end the process."""

    reason: EndReason
    deadline_ns: int
    process: Process | None
    address: str | None
    stopping: bool = False
    forced: bool = False


Phase = Placed | Loading | Ready | Draining


class ReplicaState(msgspec.Struct):
    """A living replica; ended ones leave the fleet and stay in history.

    `cause` is the event that brought it where it is, `correlation` the story of that event: what happens to it next
    happened because of it (rule H1). `trace` is the W3C trace of that event, if it has one.
    """

    id: ReplicaId
    node: NodeName
    model: ModelName
    replica_index: int
    revision: Revision
    launch: LaunchSpec
    phase: Phase
    reservation: ReservationId
    footprint_rule: FootprintRule
    since_ns: int
    sequence: int
    cause: EventId
    correlation: str
    gpus: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    pinned: bool = False
    max_concurrency: int | None = None
    exclusive: bool = False
    waits_for: tuple[ReplicaId, ...] = ()
    replaces: ReplicaId | None = None
    accept_seconds: float = 120.0
    load_seconds: float = 300.0
    loaded_ns: int | None = None
    trace: str | None = None

    @property
    def phase_name(self) -> PhaseName:
        match self.phase:
            case Placed():
                return "placed"
            case Loading():
                return "loading"
            case Ready():
                return "ready"
            case Draining():
                return "draining"
            case _:
                assert_never(self.phase)

    @property
    def process(self) -> Process | None:
        return None if isinstance(self.phase, Placed) else self.phase.process


class ReservationState(msgspec.Struct):
    id: ReservationId
    node: NodeName
    holder: Holder
    vram: dict[int, int]
    since_ns: int
    until_ns: int | None = None


class ScheduleState(msgspec.Struct, frozen=True):
    schedule: Schedule
    source: ScheduleSource


class Breaker(msgspec.Struct, frozen=True):
    reason: str
    failed_passes: int
    until_ns: int


class Refusal(msgspec.Struct, frozen=True):
    """The last refusal told, so that the same one isn't told again (rule P5)."""

    kind: RefusalKind
    filters: tuple[str, ...]
    revision: Revision
    sequence: int


class ModelReplica(msgspec.Struct, frozen=True):
    """A replica as its model counts it. `restarts` once somebody asked for a fresh one in its place."""

    node: NodeName
    replica_index: int
    revision: Revision
    phase: Literal["added", "ready", "draining"]
    restarts: bool = False


class ModelState(msgspec.Struct):
    """A model: defined, scheduled, or only still running. `spec` is None where it isn't defined (S1).

    `defined_ns` is when it was defined first, or anew after its removal; a redefinition leaves it.
    """

    name: ModelName
    sequence: int
    spec: ModelSpec | None = None
    defined_ns: int | None = None
    revision: Revision | None = None
    schedule: ScheduleState | None = None
    breaker: Breaker | None = None
    refusal: Refusal | None = None
    last_failure: str | None = None
    replicas: dict[ReplicaId, ModelReplica] = {}

    @property
    def options(self) -> Schedule:
        """The schedule in force; one that constrains nothing where none is set."""
        return self.schedule.schedule if self.schedule else Schedule()

    @property
    def serving(self) -> int:
        """Replicas that count towards the floor: added or ready, not draining."""
        return sum(replica.phase != "draining" for replica in self.replicas.values())


class Token(msgspec.Struct, frozen=True):
    """What clients ask with; `by` made it."""

    name: str
    role: Role
    digest: str
    since_ns: int
    by: Actor


class RegistrationToken(msgspec.Struct, frozen=True):
    """What workers register with; `by` made it."""

    name: str
    digest: str
    since_ns: int
    by: Actor


class RevokedToken(msgspec.Struct, frozen=True):
    """A token that is worth nothing any more: what it was, and who took it back when. No `role`: a worker's."""

    name: str
    role: Role | None
    digest: str
    since_ns: int
    by: Actor
    revoked_ns: int
    revoked_by: Actor
