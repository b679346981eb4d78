"""Events of a node: who it is, may it serve, is it heard, should it take work, how much it has.

Invariant: the four facets admission, liveness, intent and capacity change by their own events only (rule N1).
"""

from typing import Literal

import msgspec

from modelyard_events.base import NodeEvent
from modelyard_events.ids import IncarnationId, LabelKey
from modelyard_events.sizes import VramBudget

NodeType = Literal["backend", "agent"]
Overridable = Literal["max_replicas_per_model", "vram_budget"]

HOST_MEMORY = -1
"""The device index that stands for RAM on a node without GPUs, so that its reservations have an address too."""


class Gpu(msgspec.Struct, frozen=True):
    """A GPU as the worker found it; `vram_total` in bytes."""

    index: int
    vendor: str
    name: str
    vram_total: int


class NodeFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a worker says of its machine when it registers (rule N2). Bytes; None is unknown, never zero.

    `vram_total` counts only where there is no GPU: the RAM that models may use as if it were VRAM.
    """

    address: str
    gpus: tuple[Gpu, ...] = ()
    vram_total: int | None = None
    ram_total: int | None = None
    disk_total: int | None = None
    max_replicas_per_model: int = 1
    vram_budget: VramBudget | None = None
    labels: dict[LabelKey, str] = {}
    worker_version: str = ""


class NodeRegistered(NodeEvent, frozen=True, kw_only=True, tag="node.registered.v1"):
    """A name registered for the first time, or again after its removal. Admission starts as pending."""

    node_type: NodeType


class NodeIncarnationStarted(NodeEvent, frozen=True, kw_only=True, tag="node.incarnation_started.v1"):
    """A worker process began its life under this name; the one before ended.

    `secret_digest` is the SHA-256 of its state directory's secret: the proof by which a restart takes over (N3).
    """

    incarnation: IncarnationId
    facts: NodeFacts
    secret_digest: str


class NodeApproved(NodeEvent, frozen=True, kw_only=True, tag="node.approved.v1"):
    """An approve command admitted the node; nothing else does (I6). `automatic` when policy gave the command."""

    automatic: bool = False


class NodeRejected(NodeEvent, frozen=True, kw_only=True, tag="node.rejected.v1"):
    reason: str = ""


class NodeLabelsChanged(NodeEvent, frozen=True, kw_only=True, tag="node.labels_changed.v1"):
    """Operator labels were set or removed; a worker's come with its facts, the system's are derived (N5)."""

    changed: dict[LabelKey, str] = msgspec.field(default_factory=dict)
    removed: tuple[LabelKey, ...] = ()


class NodeCordoned(NodeEvent, frozen=True, kw_only=True, tag="node.cordoned.v1"):
    """Nothing new; what runs keeps serving."""


class NodeDrainStarted(NodeEvent, frozen=True, kw_only=True, tag="node.drain_started.v1"):
    """Cordon, and empty by the deadline, counted from this event's stored time."""

    deadline_seconds: float


class NodeDrainFinished(NodeEvent, frozen=True, kw_only=True, tag="node.drain_finished.v1"):
    """The last replica has ended; the node stays draining until it is resumed."""


class NodeResumed(NodeEvent, frozen=True, kw_only=True, tag="node.resumed.v1"):
    """Cordon or drain was undone. Approves nobody."""


class NodeLost(NodeEvent, frozen=True, kw_only=True, tag="node.lost.v1"):
    """No heartbeat for `silent_seconds`; slots and reservations stay for `grace_seconds`."""

    incarnation: IncarnationId
    silent_seconds: float
    grace_seconds: float


class NodeRecovered(NodeEvent, frozen=True, kw_only=True, tag="node.recovered.v1"):
    """The same incarnation is heard again."""

    incarnation: IncarnationId


class NodeDeparted(NodeEvent, frozen=True, kw_only=True, tag="node.departed.v1"):
    """A graceful stop. Never flips back without a new incarnation."""

    incarnation: IncarnationId


class NodeRemoved(NodeEvent, frozen=True, kw_only=True, tag="node.removed.v1"):
    """The node ended with its labels, overrides, replicas and reservations, in one append (N13)."""


class NodeCapacityChanged(NodeEvent, frozen=True, kw_only=True, tag="node.capacity_changed.v1"):
    """The worker measures another capacity than it registered with."""

    incarnation: IncarnationId
    gpus: tuple[Gpu, ...] = ()
    vram_total: int | None = None
    ram_total: int | None = None
    disk_total: int | None = None


class NodeMaxReplicasOverridden(NodeEvent, frozen=True, kw_only=True, tag="node.max_replicas_overridden.v1"):
    """An operator's figure holds until it is cleared, whatever the worker reports (N11)."""

    max_replicas_per_model: int


class NodeVramBudgetOverridden(NodeEvent, frozen=True, kw_only=True, tag="node.vram_budget_overridden.v1"):
    """An operator's budget holds until it is cleared; None means no cap, against the worker's own."""

    vram_budget: VramBudget | None


class WatchdogOverrides(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What the watchdog does on one node otherwise than on the fleet; None leaves it to the fleet, 0 is off (C8).

    The fields are the fleet's settings of the same names.
    """

    idle_timeout_seconds: float | None = None
    busy_timeout_seconds: float | None = None
    max_loaded_models: int | None = None
    reclaim_memory: bool | None = None


class NodeWatchdogOverridden(NodeEvent, frozen=True, kw_only=True, tag="node.watchdog_overridden.v1"):
    """An operator's figures hold on this node until they are given back to the fleet (C8, N11).

    `overrides` are whole: empty gives all of them back; `changed` names the fields that differ from before.
    """

    overrides: WatchdogOverrides
    changed: tuple[str, ...]


class NodeOverrideCleared(NodeEvent, frozen=True, kw_only=True, tag="node.override_cleared.v1"):
    """The worker's value holds again at once."""

    override: Overridable


NodeOwnEvent = (
    NodeRegistered
    | NodeIncarnationStarted
    | NodeApproved
    | NodeRejected
    | NodeLabelsChanged
    | NodeCordoned
    | NodeDrainStarted
    | NodeDrainFinished
    | NodeResumed
    | NodeLost
    | NodeRecovered
    | NodeDeparted
    | NodeRemoved
    | NodeCapacityChanged
    | NodeMaxReplicasOverridden
    | NodeVramBudgetOverridden
    | NodeWatchdogOverridden
    | NodeOverrideCleared
)
