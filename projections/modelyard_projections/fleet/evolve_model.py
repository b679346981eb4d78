"""How a model's events change its spec, schedule, breaker and count of replicas.

Invariant: a model that is neither defined nor scheduled nor running leaves the fleet.
"""

from typing import assert_never

import msgspec

from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName
from modelyard_events.model import (
    ModelAliasClaimed,
    ModelDeclaredSatisfiable,
    ModelDeclaredUnsatisfiable,
    ModelDefined,
    ModelOwnEvent,
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
from modelyard_projections.fleet.evolve_node import NANOSECONDS
from modelyard_projections.fleet.picture import FleetState
from modelyard_projections.fleet.state import Breaker, ModelReplica, ModelState, Refusal, ScheduleState

_FAILURES = frozenset({"load_failed", "load_expired", "crashed"})


def evolve_model(fleet: FleetState, event: ModelOwnEvent, recorded: Recorded) -> None:
    """Apply one of the model's events."""
    name = ModelName(event.model)
    model = fleet.models.get(name)
    if model is None:
        model = fleet.models[name] = ModelState(name=name, sequence=recorded.sequence)
    model.sequence = recorded.sequence
    before = _aliases(model)
    _change(model, event, recorded)
    _rename(fleet, name, before, _aliases(model))
    if model.spec is None and model.schedule is None and not model.replicas:
        del fleet.models[name]
    fleet.touch("model", name)


def _aliases(model: ModelState) -> tuple[str, ...]:
    return () if model.spec is None else model.spec.aliases


def _rename(fleet: FleetState, model: ModelName, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """An alias belongs to whoever had it first, and goes on to the next when that one gives it up.

    A second holder is none that could still be appended; logs from before `model.alias_claimed.v1` may have some.
    """
    for alias in before:
        if alias not in after:
            left = tuple(holder for holder in fleet.aliases[alias] if holder != model)
            if left:
                fleet.aliases[alias] = left
            else:
                del fleet.aliases[alias]
    for alias in after:
        if alias not in before:
            fleet.aliases[alias] = (*fleet.aliases.get(alias, ()), model)


def _change(model: ModelState, event: ModelOwnEvent, recorded: Recorded) -> None:
    match event:
        case ModelDefined() | ModelRedefined():
            model.spec, model.revision, model.last_failure = event.spec, event.revision, None
            model.defined_ns = model.defined_ns or recorded.time_ns
        case ModelRemoved():
            model.spec, model.revision, model.defined_ns = None, None, None
        case ModelScheduleSet():
            model.schedule = ScheduleState(event.schedule, event.source)
        case ModelScheduleCleared():
            model.schedule = None
        case (
            ModelReplicaAdded()
            | ModelReplicaReady()
            | ModelReplicaDraining()
            | ModelReplicaEnded()
            | ModelRestartRequested()
        ):
            _count(model, event)
        case ModelPlacementRefused():
            filters = tuple(count.filter for count in event.decision.filters)
            model.refusal = Refusal(event.kind, filters, event.revision, recorded.sequence)
        case ModelDeclaredUnsatisfiable():
            until_ns = recorded.time_ns + round(event.cool_down_seconds * NANOSECONDS)
            model.breaker = Breaker(event.reason, event.failed_passes, until_ns)
        case ModelDeclaredSatisfiable():
            model.breaker = None
        case ModelScaled() | ModelAliasClaimed():
            # The record of a decision, which the replica events after it carry out; and of a name that is held, as the
            # holder's spec says: told here for the guard that it takes.
            pass
        case _:
            assert_never(event)


def _count(
    model: ModelState,
    event: ModelReplicaAdded | ModelReplicaReady | ModelReplicaDraining | ModelReplicaEnded | ModelRestartRequested,
) -> None:
    match event:
        case ModelReplicaAdded():
            model.replicas[event.replica] = ModelReplica(event.node, event.replica_index, event.revision, "added")
            model.refusal = None
        case ModelReplicaReady():
            model.replicas[event.replica] = msgspec.structs.replace(model.replicas[event.replica], phase="ready")
            model.last_failure = None
        case ModelReplicaDraining():
            for replica in event.replicas:
                model.replicas[replica] = msgspec.structs.replace(model.replicas[replica], phase="draining")
        case ModelRestartRequested():
            # One that has ended meanwhile needs no restart.
            for replica in model.replicas.keys() & set(event.replicas):
                model.replicas[replica] = msgspec.structs.replace(model.replicas[replica], restarts=True)
        case ModelReplicaEnded():
            for replica in event.replicas:
                del model.replicas[replica]
            if event.reason in _FAILURES:
                model.last_failure = event.detail or event.reason
        case _:
            assert_never(event)
