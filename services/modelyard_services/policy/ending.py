"""How a replica ends: drained, stopped, ended, each with all the events it takes, in one append (rules R7, R8).

```
placed ───────────────────────────────▶ end     nothing runs yet, nothing to drain
loading, ready ─▶ begin_drain ─▶ request_stop ─▶ end
any phase, its process or node gone ──▶ end
```

Invariant: what a node's events say of a replica's end, its model's say too, and its reservation is released
with it (I7). Replicas that are already that far give no events, so asking twice changes nothing.
"""

from collections.abc import Iterable
from itertools import groupby

from modelyard_events.decision import Decision
from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ReplicaId
from modelyard_events.model import ModelReplicaDraining, ModelReplicaEnded
from modelyard_events.replica import EndReason, ReplicaDrainStarted, ReplicaStopRequested, ReplicaUnloaded
from modelyard_events.reservation import ReservationReleased
from modelyard_projections.fleet import Draining, Fleet, Placed, ReplicaState


def begin_drain(
    fleet: Fleet,
    replicas: Iterable[ReplicaId],
    *,
    reason: EndReason,
    deadline_seconds: float,
    decision: Decision | None = None,
) -> list[AnyEvent]:
    """No new leases on `replicas` from here on; those that have no process yet end at once."""
    living = _living(fleet, replicas)
    unstarted = [state.id for state in living if isinstance(state.phase, Placed)]
    started = [state for state in living if not isinstance(state.phase, Placed | Draining)]
    events: list[AnyEvent] = [
        ReplicaDrainStarted(
            node=node, replicas=ids, reason=reason, deadline_seconds=deadline_seconds, decision=decision
        )
        for node, ids in _by_node(started)
    ]
    events += [ModelReplicaDraining(model=model, replicas=ids, reason=reason) for model, ids in _by_model(started)]
    return events + end(fleet, unstarted, reason=reason)


def request_stop(fleet: Fleet, replicas: Iterable[ReplicaId], *, forced: bool = False) -> list[AnyEvent]:
    """The worker may stop the processes of the draining `replicas`; `forced` when leases are cut."""
    draining = [
        state
        for state in _living(fleet, replicas)
        if isinstance(state.phase, Draining) and (not state.phase.stopping or (forced and not state.phase.forced))
    ]
    return [ReplicaStopRequested(node=node, replicas=ids, forced=forced) for node, ids in _by_node(draining)]


def end(fleet: Fleet, replicas: Iterable[ReplicaId], *, reason: EndReason, detail: str = "") -> list[AnyEvent]:
    """`replicas` are over: slots, memory and the models' counts are freed together.

    A drain's own reason stands: why a replica was to end is not overwritten by how it did.
    """
    living = _living(fleet, replicas)
    events: list[AnyEvent] = []
    for why, ended in groupby(sorted(living, key=lambda s: _reason(s, reason)), key=lambda s: _reason(s, reason)):
        events += _end_for_one_reason(list(ended), reason=why, detail=detail)
    return events


def _reason(state: ReplicaState, reason: EndReason) -> EndReason:
    # Node-wide ends say more than the drain they cut short: the process was not stopped, it is gone.
    if isinstance(state.phase, Draining) and reason not in {"node_lost", "node_removed", "node_departed"}:
        return state.phase.reason
    return reason


def _end_for_one_reason(living: list[ReplicaState], *, reason: EndReason, detail: str) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    for node, ids in _by_node(living):
        held = tuple(state.reservation for state in living if state.node == node)
        events.append(ReplicaUnloaded(node=node, replicas=ids, reason=reason, detail=detail))
        events.append(ReservationReleased(node=node, reservations=held))
    events += [
        ModelReplicaEnded(model=model, replicas=ids, reason=reason, detail=detail) for model, ids in _by_model(living)
    ]
    return events


def _living(fleet: Fleet, replicas: Iterable[ReplicaId]) -> list[ReplicaState]:
    unique = dict.fromkeys(replicas)
    return [fleet.replicas[replica] for replica in unique if replica in fleet.replicas]


def _by_node(states: Iterable[ReplicaState]) -> list[tuple[str, tuple[ReplicaId, ...]]]:
    grouped: dict[str, list[ReplicaId]] = {}
    for state in states:
        grouped.setdefault(state.node, []).append(state.id)
    return [(node, tuple(ids)) for node, ids in grouped.items()]


def _by_model(states: Iterable[ReplicaState]) -> list[tuple[str, tuple[ReplicaId, ...]]]:
    grouped: dict[str, list[ReplicaId]] = {}
    for state in states:
        grouped.setdefault(state.model, []).append(state.id)
    return [(model, tuple(ids)) for model, ids in grouped.items()]
