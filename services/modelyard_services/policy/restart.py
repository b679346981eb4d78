"""Restarting what runs: a fresh process of the same revision in place of each replica, without a gap where it fits.

Invariant: only what is ready restarts; a load under way is fresh already. The reconciler does it, one after another,
exactly as it rolls out a revision (rule R6).
"""

from collections.abc import Iterable

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_events.model import ModelRestartRequested
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.desired import is_ready, restarts


def restart(fleet: Fleet, replicas: Iterable[ReplicaId]) -> list[AnyEvent]:
    """Ask for a fresh one in place of each of `replicas` that is ready and not to be restarted already."""
    wanted: dict[ModelName, list[ReplicaId]] = {}
    for replica in replicas:
        state = fleet.replicas.get(replica)
        if state is not None and is_ready(state) and not restarts(fleet.models[state.model], state):
            wanted.setdefault(state.model, []).append(replica)
    return [ModelRestartRequested(model=model, replicas=tuple(ids)) for model, ids in wanted.items()]
