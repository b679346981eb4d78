"""The one fold that router, reconciler, registrar, worker, projector, rebuild and tests share. Pure.

Invariant: the same events give the same fleet everywhere (I9); a fleet is never changed but by `Fleet.apply`.
"""

from modelyard_projections.fleet.fold import Fleet, FoldError
from modelyard_projections.fleet.picture import CommandRecord, Touched
from modelyard_projections.fleet.state import (
    Alive,
    Breaker,
    Cordoned,
    Departed,
    Draining,
    IntentName,
    LivenessName,
    Loading,
    Lost,
    ModelState,
    NodeDraining,
    NodeState,
    PhaseName,
    Placed,
    Ready,
    ReplicaState,
    ReservationState,
    Schedulable,
    ScheduleState,
)

__all__ = [
    "Alive",
    "Breaker",
    "CommandRecord",
    "Cordoned",
    "Departed",
    "Draining",
    "Fleet",
    "FoldError",
    "IntentName",
    "LivenessName",
    "Loading",
    "Lost",
    "ModelState",
    "NodeDraining",
    "NodeState",
    "PhaseName",
    "Placed",
    "Ready",
    "ReplicaState",
    "ReservationState",
    "Schedulable",
    "ScheduleState",
    "Touched",
]
