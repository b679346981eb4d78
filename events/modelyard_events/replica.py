"""Events of replicas, on their node's subject, so that one guard holds slots, memory and groups together.

Invariant: `replica.placed` copies all it was decided with (footprint, groups, devices, launch spec), so a
replay and the worker need nothing but the node's own events.
"""

from typing import Literal

import msgspec

from modelyard_events.base import NodeEvent
from modelyard_events.decision import Decision
from modelyard_events.ids import IncarnationId, ReplicaId, ReservationId, Revision
from modelyard_events.spec import LaunchSpec

EndReason = Literal[
    "requested",
    "scaled_down",
    "evicted_lru",
    "evicted_group",
    "evicted_memory",
    "idle",
    "busy_timeout",
    "drained",
    "node_lost",
    "node_removed",
    "node_departed",
    "load_failed",
    "load_expired",
    "superseded",
    "probe_failed",
    "crashed",
    "reported_missing",
]
"""Why a replica ended (rule R7); `crashed` and `node_departed` are ours."""

FootprintRule = Literal["spec", "file_size", "measured", "unknown", "gguf", "safetensors"]
"""What gave the footprint (rule R4): the spec's `vram`, a measurement, the files' headers, file size times 1.2, or
nothing."""


class Process(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which operating-system process serves a replica: the pid alone is recycled, with its start it is not."""

    pid: int
    started_at: float
    port: int


class ProcessExit(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a process ended, with the last lines of its stderr (at most 20)."""

    exit_code: int | None = None
    signal: str | None = None
    stderr_tail: tuple[str, ...] = ()


class ReplicaPlaced(NodeEvent, frozen=True, kw_only=True, tag="replica.placed.v1"):
    """A slot and its memory were claimed, before anything is started (rules R2, R3).

    `vram` is bytes per device index (`HOST_MEMORY` without GPUs). While `waits_for` names living victims, the
    newcomer stands in for them and may not load (P3). `exclusive` when the footprint is unknown (R4).
    `replaces` names the replica of an older revision that ends once this one is ready (R6).
    """

    replica: ReplicaId
    model: str
    replica_index: int
    revision: Revision
    launch: LaunchSpec
    reservation: ReservationId
    vram: dict[int, int]
    footprint_rule: FootprintRule
    gpus: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    pinned: bool = False
    max_concurrency: int | None = None
    exclusive: bool = False
    waits_for: tuple[ReplicaId, ...] = ()
    replaces: ReplicaId | None = None
    accept_seconds: float = 120.0
    load_seconds: float = 300.0
    decision: Decision


class ReplicaLoadStarted(NodeEvent, frozen=True, kw_only=True, tag="replica.load_started.v1"):
    """The worker started the process."""

    replica: ReplicaId
    incarnation: IncarnationId
    process: Process


class ReplicaLoaded(NodeEvent, frozen=True, kw_only=True, tag="replica.loaded.v1"):
    """The process answers its health check at `address` (host:port)."""

    replica: ReplicaId
    incarnation: IncarnationId
    address: str


class ReplicaLoadFailed(NodeEvent, frozen=True, kw_only=True, tag="replica.load_failed.v1"):
    """The process didn't become ready. The replica's end follows in the same append."""

    replica: ReplicaId
    detail: str
    exit: ProcessExit = ProcessExit()


class ReplicaCrashed(NodeEvent, frozen=True, kw_only=True, tag="replica.crashed.v1"):
    """A ready process ended by itself. The replica's end follows in the same append."""

    replica: ReplicaId
    exit: ProcessExit


class ReplicaDrainStarted(NodeEvent, frozen=True, kw_only=True, tag="replica.drain_started.v1"):
    """No new leases from here on; leases in flight finish or the deadline passes (rule R8)."""

    replicas: tuple[ReplicaId, ...]
    reason: EndReason
    deadline_seconds: float
    decision: Decision | None = None


class ReplicaStopRequested(NodeEvent, frozen=True, kw_only=True, tag="replica.stop_requested.v1"):
    """Nothing holds the replicas any more: the worker stops their processes now.

    `forced` when the deadline passed with leases in flight.
    """

    replicas: tuple[ReplicaId, ...]
    forced: bool = False


class ReplicaUnloaded(NodeEvent, frozen=True, kw_only=True, tag="replica.unloaded.v1"):
    """The replicas ended: their processes are gone, or their node is. Slots are free."""

    replicas: tuple[ReplicaId, ...]
    reason: EndReason
    detail: str = ""


class ReplicaAdopted(NodeEvent, frozen=True, kw_only=True, tag="replica.adopted.v1"):
    """A new incarnation reported the living process with matching identity; the replica goes on (N2, W4)."""

    replica: ReplicaId
    incarnation: IncarnationId
    process: Process
    address: str | None = None


ReplicaEvent = (
    ReplicaPlaced
    | ReplicaLoadStarted
    | ReplicaLoaded
    | ReplicaLoadFailed
    | ReplicaCrashed
    | ReplicaDrainStarted
    | ReplicaStopRequested
    | ReplicaUnloaded
    | ReplicaAdopted
)
