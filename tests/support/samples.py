"""One event of every kind with every field set: what golden files, schemas and the public stream are tested with.

Invariant: a sample never changes once its golden file was released, but for a new optional field: then the body without
it stays, as one of the `EARLIER`. Any other change of shape is a new tag, with a sample of its own.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import msgspec

from modelyard_events.codec import tag_of
from modelyard_events.decision import Decision, FilterCount, ScoredNode
from modelyard_events.envelope import Actor, AnyEvent, Envelope
from modelyard_events.fleet import (
    FleetMassLossCleared,
    FleetMassLossDeclared,
    FleetRegistrationTokenCreated,
    FleetRegistrationTokenRevoked,
    FleetSettingsChanged,
    FleetTokenCreated,
    FleetTokenRevoked,
    Settings,
)
from modelyard_events.ids import (
    CommandId,
    EventId,
    IncarnationId,
    LabelKey,
    ModelName,
    NodeName,
    ReplicaId,
    ReservationId,
    Revision,
)
from modelyard_events.model import (
    ModelAliasClaimed,
    ModelDeclaredSatisfiable,
    ModelDeclaredUnsatisfiable,
    ModelDefined,
    ModelPlacementRefused,
    ModelRedefined,
    ModelRemoved,
    ModelReplicaAdded,
    ModelReplicaDraining,
    ModelReplicaEnded,
    ModelReplicaReady,
    ModelRestartRequested,
    ModelScaled,
    ModelScheduleCleared,
    ModelScheduleSet,
)
from modelyard_events.node import (
    Gpu,
    NodeApproved,
    NodeCapacityChanged,
    NodeCordoned,
    NodeDeparted,
    NodeDrainFinished,
    NodeDrainStarted,
    NodeFacts,
    NodeIncarnationStarted,
    NodeLabelsChanged,
    NodeLost,
    NodeMaxReplicasOverridden,
    NodeOverrideCleared,
    NodeRecovered,
    NodeRegistered,
    NodeRejected,
    NodeRemoved,
    NodeResumed,
    NodeVramBudgetOverridden,
    NodeWatchdogOverridden,
    WatchdogOverrides,
)
from modelyard_events.replica import (
    Process,
    ProcessExit,
    ReplicaAdopted,
    ReplicaCrashed,
    ReplicaDrainStarted,
    ReplicaLoaded,
    ReplicaLoadFailed,
    ReplicaLoadStarted,
    ReplicaPlaced,
    ReplicaStopRequested,
    ReplicaUnloaded,
)
from modelyard_events.reservation import (
    OperatorHolder,
    ReservationGranted,
    ReservationReleased,
    ReservationResized,
)
from modelyard_events.selectors import parse_selector
from modelyard_events.sizes import Bytes, Fraction
from modelyard_events.spec import Autoscale, Health, LaunchSpec, ModelSpec, Schedule, SecretRef

GIB: Final = 2**30
NODE: Final = NodeName("gpu-1")
MODEL: Final = "Qwen/Qwen3-32B:q4"
REPLICA: Final = ReplicaId("r-2hoejiwhunshdzsy")
OTHER: Final = ReplicaId("r-b5cz7u6fzq3ywlkd")
RESERVATION: Final = ReservationId("v-2hoejiwhunshdzsy")
LIFE: Final = IncarnationId("gpu-1-8f14e45f")
REVISION: Final = Revision("0123456789ab")
DIGEST: Final = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

ENVELOPE: Final = Envelope(
    actor=Actor("operator", "anna"),
    command=CommandId("c-0123456789abcdef01234567"),
    correlation="c-0123456789abcdef01234567",
    causation=EventId("c-89abcdef0123456789abcdef.2"),
    trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    request_digest=DIGEST,
    occurred_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
)

_DECISION: Final = Decision(
    kind="placement",
    outcome="placed on gpu-1",
    policy="placement-1",
    basis=41,
    figures={"vram": 20 * GIB, "share": 0.5, "rule": "spec", "unknown": None},
    considered=5,
    runners_up=(ScoredNode("gpu-2", {"loading": 0, "vram_free": 4 * GIB, "name": "gpu-2"}),),
    filters=(FilterCount("vram", 3, low=2 * GIB, high=9.8, unit="bytes", examples=("gpu-3", "gpu-4")),),
    unblock="raise the budget of gpu-3 by 2.1 GiB",
    telemetry="H4sIAAAAAAAA",
)
_LAUNCH: Final = LaunchSpec(
    command=("serve", "--port", "{port}"),
    environment={"HF_TOKEN": SecretRef(from_env="HF_TOKEN"), "THREADS": "4"},
    working_directory="/srv",
    health=Health(grpc="health"),
    files=("/models/q4.gguf",),
    devices=("/dev/fuse",),
    ready_timeout_seconds=90.5,
    stop_grace_seconds=20.0,
)
_SPEC: Final = ModelSpec(
    command=_LAUNCH.command,
    environment=_LAUNCH.environment,
    working_directory="/srv",
    health=Health(http="/healthz"),
    files=_LAUNCH.files,
    devices=_LAUNCH.devices,
    ready_timeout_seconds=90.5,
    stop_grace_seconds=20.0,
    vram=20 * GIB,
    file_size=18 * GIB,
    disk=19 * GIB,
    concurrency_groups=("big", "heavy"),
    pinned=True,
    max_concurrency=8,
)
_FACTS: Final = NodeFacts(
    address="10.0.0.7:7071",
    gpus=(Gpu(0, "nvidia", "H100", 80 * GIB), Gpu(1, "nvidia", "H100", 80 * GIB)),
    vram_total=1,
    ram_total=512 * GIB,
    disk_total=4096 * GIB,
    max_replicas_per_model=2,
    vram_budget=Fraction(0.9),
    labels={LabelKey("zone"): "a"},
    worker_version="0.1.0",
)
_SCHEDULE: Final = Schedule(
    mode=Autoscale(1, 3),
    node_selector=parse_selector("tier=gpu, zone in (a,b), kind notin (x,y), rack!=7, fast, !spot"),
    placement="binpack",
    max_per_node=2,
    gpus=2,
    idle_timeout_seconds=300.0,
    target_in_flight=2.5,
    rollout="replace",
    affinity="session",
)
_PROCESS: Final = Process(4711, 1767323045.25, 31001)
_EXIT: Final = ProcessExit(137, "SIGKILL", ("CUDA out of memory \N{COLLISION SYMBOL}", "nul \0 and \\u0000"))

_SETTINGS: Final = Settings(
    reconciler_frozen=True,
    evictions_frozen=True,
    drain_deadline_seconds=60.0,
    lost_after_seconds=30.0,
    lost_grace_seconds=300.0,
    mass_loss_share=0.5,
    idle_scale_down_seconds=120.0,
    breaker_failed_passes=5,
    breaker_cool_down_seconds=60.0,
    min_residency_seconds=30.0,
    eviction_order="size",
    max_loaded_models=2,
    idle_timeout_seconds=900.0,
    busy_timeout_seconds=300.0,
    reclaim_memory=True,
    heartbeat_seconds=5.0,
    liveness_pass_seconds=10.0,
    ping_seconds=1.0,
    accept_deadline_seconds=60.0,
    load_deadline_seconds=600.0,
    load_deadline_seconds_per_gib=10.0,
    load_stall_seconds=120.0,
    missed_heartbeats_max=3,
    reconciler_pass_seconds=20.0,
    reclaim_above_share=0.9,
    file_size_factor=1.3,
    disk_headroom_share=0.1,
    disk_headroom_bytes=2 * 2**30,
    held_up_seconds=60.0,
    load_backoff_seconds=5.0,
    load_backoff_max_seconds=600.0,
    lease_seconds=120.0,
    router_report_seconds=0.5,
    router_silence_seconds=10.0,
    retry_after_min_seconds=2.0,
    retry_after_max_seconds=60.0,
    affinity_block_bytes=512,
    affinity_blocks_max=32,
    affinity_match_share=0.5,
    affinity_slack=4,
    affinity_slack_factor=2.0,
    affinity_slack_base=2,
)
"""Each figure another than its default; those that came later stand where they are used."""

_ALL: Final[tuple[AnyEvent, ...]] = (
    NodeRegistered(node=NODE, node_type="backend"),
    NodeIncarnationStarted(node=NODE, incarnation=LIFE, facts=_FACTS, secret_digest=DIGEST),
    NodeApproved(node=NODE, automatic=True),
    NodeRejected(node=NODE, reason="unknown machine"),
    NodeLabelsChanged(node=NODE, changed={LabelKey("tier"): "gpu"}, removed=(LabelKey("zone"),)),
    NodeCordoned(node=NODE),
    NodeDrainStarted(node=NODE, deadline_seconds=600.0),
    NodeDrainFinished(node=NODE),
    NodeResumed(node=NODE),
    NodeLost(node=NODE, incarnation=LIFE, silent_seconds=61.25, grace_seconds=600.0),
    NodeRecovered(node=NODE, incarnation=LIFE),
    NodeDeparted(node=NODE, incarnation=LIFE),
    NodeRemoved(node=NODE),
    NodeCapacityChanged(
        node=NODE, incarnation=LIFE, gpus=_FACTS.gpus, vram_total=1, ram_total=256 * GIB, disk_total=2048 * GIB
    ),
    NodeMaxReplicasOverridden(node=NODE, max_replicas_per_model=3),
    NodeVramBudgetOverridden(node=NODE, vram_budget=Bytes(64 * GIB)),
    NodeWatchdogOverridden(
        node=NODE,
        overrides=WatchdogOverrides(900.0, 300.0, 1, reclaim_memory=True),
        changed=("idle_timeout_seconds", "busy_timeout_seconds", "max_loaded_models", "reclaim_memory"),
    ),
    NodeOverrideCleared(node=NODE, override="vram_budget"),
    ReplicaPlaced(
        node=NODE,
        replica=REPLICA,
        model=MODEL,
        replica_index=1,
        revision=REVISION,
        launch=_LAUNCH,
        reservation=RESERVATION,
        vram={0: 10 * GIB, 1: 10 * GIB},
        footprint_rule="spec",
        gpus=(0, 1),
        groups=("big", "heavy"),
        pinned=True,
        max_concurrency=8,
        exclusive=True,
        waits_for=(OTHER,),
        replaces=OTHER,
        accept_seconds=60.0,
        load_seconds=700.0,
        decision=_DECISION,
    ),
    ReplicaLoadStarted(node=NODE, replica=REPLICA, incarnation=LIFE, process=_PROCESS),
    ReplicaLoaded(node=NODE, replica=REPLICA, incarnation=LIFE, address="10.0.0.7:31001"),
    ReplicaLoadFailed(node=NODE, replica=REPLICA, detail="exit code 137", exit=_EXIT),
    ReplicaCrashed(node=NODE, replica=REPLICA, exit=_EXIT),
    ReplicaDrainStarted(
        node=NODE, replicas=(REPLICA, OTHER), reason="evicted_lru", deadline_seconds=30.0, decision=_DECISION
    ),
    ReplicaStopRequested(node=NODE, replicas=(REPLICA,), forced=True),
    ReplicaUnloaded(node=NODE, replicas=(REPLICA,), reason="crashed", detail="exit code 137"),
    ReplicaAdopted(node=NODE, replica=REPLICA, incarnation=LIFE, process=_PROCESS, address="10.0.0.7:31001"),
    ReservationGranted(
        node=NODE,
        reservation=RESERVATION,
        holder=OperatorHolder("anna", "training", 3600.0),
        vram={0: 10 * GIB, 1: 10 * GIB},
    ),
    ReservationResized(node=NODE, reservation=RESERVATION, vram={0: 11 * GIB}),
    ReservationReleased(node=NODE, reservations=(RESERVATION,)),
    ModelDefined(model=MODEL, spec=_SPEC, revision=REVISION),
    ModelRedefined(model=MODEL, spec=_SPEC, revision=REVISION, previous=Revision("ba9876543210")),
    ModelRemoved(model=MODEL),
    ModelAliasClaimed(model=MODEL, holder=ModelName("meta/llama-3-70b")),
    ModelScheduleSet(model=MODEL, schedule=_SCHEDULE, source="file"),
    ModelScheduleCleared(model=MODEL, source="api"),
    ModelReplicaAdded(model=MODEL, replica=REPLICA, node=NODE, replica_index=1, revision=REVISION),
    ModelReplicaReady(model=MODEL, replica=REPLICA),
    ModelReplicaDraining(model=MODEL, replicas=(REPLICA, OTHER), reason="scaled_down"),
    ModelReplicaEnded(model=MODEL, replicas=(REPLICA,), reason="load_failed", detail="exit code 137"),
    ModelPlacementRefused(model=MODEL, kind="exhausted", revision=REVISION, decision=_DECISION),
    ModelRestartRequested(model=MODEL, replicas=(REPLICA, OTHER)),
    ModelScaled(model=MODEL, previous=1, wanted=2, reason="every replica is busy", decision=_DECISION),
    ModelDeclaredUnsatisfiable(
        model=MODEL, reason="no node matches", failed_passes=3, cool_down_seconds=300.0, decision=_DECISION
    ),
    ModelDeclaredSatisfiable(model=MODEL, cause="node gpu-3 joined"),
    FleetSettingsChanged(
        settings=msgspec.structs.replace(_SETTINGS, held_up_retry_seconds=2.0), changed=("lost_after_seconds",)
    ),
    FleetMassLossDeclared(nodes=(NODE, "gpu-2"), fleet_size=4),
    FleetMassLossCleared(cause="heartbeats"),
    FleetTokenCreated(name="anna", role="operator", digest=DIGEST),
    FleetTokenRevoked(name="anna"),
    FleetRegistrationTokenCreated(name="rack-7", digest=DIGEST),
    FleetRegistrationTokenRevoked(name="rack-7"),
)

SAMPLES: Final[Mapping[str, AnyEvent]] = {tag_of(event): event for event in _ALL}
"""Every current tag's sample."""

RETIRED: Final[Mapping[str, AnyEvent]] = {
    "node.departed.v0": NodeDeparted(node=NODE, incarnation=IncarnationId("unknown")),
}
"""What the golden file of each retired tag decodes to."""

EARLIER: Final[Mapping[str, AnyEvent]] = {
    "fleet.settings_changed.v1.1": FleetSettingsChanged(
        settings=Settings(True, True, 60.0, 30.0, 300.0, 0.5, 120.0, 5, 60.0), changed=("lost_after_seconds",)
    ),
    "fleet.settings_changed.v1.2": FleetSettingsChanged(
        settings=Settings(True, True, 60.0, 30.0, 300.0, 0.5, 120.0, 5, 60.0, 30.0, "size", 2),
        changed=("lost_after_seconds",),
    ),
    "fleet.settings_changed.v1.3": FleetSettingsChanged(
        settings=Settings(True, True, 60.0, 30.0, 300.0, 0.5, 120.0, 5, 60.0, 30.0, "size", 2, 900.0, 300.0, True),
        changed=("lost_after_seconds",),
    ),
    "fleet.settings_changed.v1.4": FleetSettingsChanged(settings=_SETTINGS, changed=("lost_after_seconds",)),
}
"""What bodies mean that were written before their tag got a further optional field."""
