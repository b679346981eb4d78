"""Events of a model: its spec, its schedule, its replicas' count, why it isn't placed.

Invariant: whatever changes a model's replica count writes here too, in the same append as on the node, so two
deciders on two nodes can't both believe they are alone (DESIGN 2).
"""

from typing import Literal

from modelyard_events.base import ModelEvent
from modelyard_events.decision import Decision
from modelyard_events.ids import ModelName, NodeName, ReplicaId, Revision
from modelyard_events.replica import EndReason
from modelyard_events.spec import ModelSpec, Schedule, ScheduleSource

RefusalKind = Literal["unsatisfiable", "exhausted"]


class ModelDefined(ModelEvent, frozen=True, kw_only=True, tag="model.defined.v1"):
    spec: ModelSpec
    revision: Revision


class ModelRedefined(ModelEvent, frozen=True, kw_only=True, tag="model.redefined.v1"):
    """Drains nothing by itself; the reconciler replaces replicas of older revisions (rule R6)."""

    spec: ModelSpec
    revision: Revision
    previous: Revision


class ModelRemoved(ModelEvent, frozen=True, kw_only=True, tag="model.removed.v1"):
    """The definition ended; its replicas drain in the same append."""


class ModelAliasClaimed(ModelEvent, frozen=True, kw_only=True, tag="model.alias_claimed.v1"):
    """`holder` answers to the name `model` from here on; told where whoever else wants that name has to write as well.

    Appended with the definition that says so. Nothing is told here when it is given up: the holder's own events say.
    """

    holder: ModelName


class ModelScheduleSet(ModelEvent, frozen=True, kw_only=True, tag="model.schedule_set.v1"):
    schedule: Schedule
    source: ScheduleSource


class ModelScheduleCleared(ModelEvent, frozen=True, kw_only=True, tag="model.schedule_cleared.v1"):
    source: ScheduleSource


class ModelReplicaAdded(ModelEvent, frozen=True, kw_only=True, tag="model.replica_added.v1"):
    replica: ReplicaId
    node: NodeName
    replica_index: int
    revision: Revision


class ModelReplicaReady(ModelEvent, frozen=True, kw_only=True, tag="model.replica_ready.v1"):
    replica: ReplicaId


class ModelReplicaDraining(ModelEvent, frozen=True, kw_only=True, tag="model.replica_draining.v1"):
    """The replicas no longer count towards the model's minimum."""

    replicas: tuple[ReplicaId, ...]
    reason: EndReason


class ModelReplicaEnded(ModelEvent, frozen=True, kw_only=True, tag="model.replica_ended.v1"):
    replicas: tuple[ReplicaId, ...]
    reason: EndReason
    detail: str = ""


class ModelRestartRequested(ModelEvent, frozen=True, kw_only=True, tag="model.restart_requested.v1"):
    """Ready replicas are to be replaced by fresh ones of the same revision, as a rollout replaces older ones (R6)."""

    replicas: tuple[ReplicaId, ...]


class ModelPlacementRefused(ModelEvent, frozen=True, kw_only=True, tag="model.placement_refused.v1"):
    """No node could take a replica; appended only when kind, blocking filters or spec differ from the last (P5)."""

    kind: RefusalKind
    revision: Revision
    decision: Decision


class ModelScaled(ModelEvent, frozen=True, kw_only=True, tag="model.scaled.v1"):
    """The reconciler changed how many replicas it wants."""

    previous: int
    wanted: int
    reason: str
    decision: Decision


class ModelDeclaredUnsatisfiable(ModelEvent, frozen=True, kw_only=True, tag="model.declared_unsatisfiable.v1"):
    """The breaker opened: no scale-up for `cool_down_seconds`, unless an event clears it (rule C5)."""

    reason: str
    failed_passes: int
    cool_down_seconds: float
    decision: Decision


class ModelDeclaredSatisfiable(ModelEvent, frozen=True, kw_only=True, tag="model.declared_satisfiable.v1"):
    cause: str


ModelOwnEvent = (
    ModelDefined
    | ModelRedefined
    | ModelRemoved
    | ModelAliasClaimed
    | ModelScheduleSet
    | ModelScheduleCleared
    | ModelReplicaAdded
    | ModelReplicaReady
    | ModelReplicaDraining
    | ModelReplicaEnded
    | ModelPlacementRefused
    | ModelScaled
    | ModelRestartRequested
    | ModelDeclaredUnsatisfiable
    | ModelDeclaredSatisfiable
)
