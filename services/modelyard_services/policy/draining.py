"""Emptying a node: replacements first where a floor needs them, then drain, then say that it is empty (rule N10).

Invariant: until the node's deadline a replica keeps serving while its model's floor needs it and its replacement
is on its way or fits; after it nothing waits.
"""

from collections.abc import Sequence
from functools import partial

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.node import NodeDrainFinished
from modelyard_projections.fleet import Draining, Fleet, NodeDraining, NodeState, ReplicaState
from modelyard_services.policy.actions import NANOSECONDS, Action, View, why
from modelyard_services.policy.desired import counted, floor, is_ready, shortage
from modelyard_services.policy.ending import begin_drain
from modelyard_services.policy.placement import Request, wish_of


def empty_nodes(view: View) -> list[Action]:
    """The next step of every node's drain."""
    actions: list[Action] = []
    needed = _needed(view)
    for node in view.fleet.nodes.values():
        if isinstance(node.intent, NodeDraining) and not node.intent.finished:
            actions += _empty(view, node, node.intent, needed)
    return actions


def _empty(view: View, node: NodeState, intent: NodeDraining, needed: set[ReplicaId]) -> list[Action]:
    if not node.replicas:
        return [_finish(node)]
    left_seconds = max(0.0, (intent.deadline_ns - view.moment.log_ns) / NANOSECONDS)
    going = [
        state
        for state in view.fleet.replicas_on(node.name)
        if not isinstance(state.phase, Draining) and (state.id not in needed or not left_seconds)
    ]
    return [_leave(state, left_seconds) for state in going]


def _needed(view: View) -> set[ReplicaId]:
    """Ready replicas on draining nodes that serve until their replacements are ready."""
    fleet = view.fleet
    leaving: dict[ModelName, list[ReplicaState]] = {}
    for node in fleet.nodes.values():
        if isinstance(node.intent, NodeDraining) and not node.intent.finished:
            for state in fleet.replicas_on(node.name):
                if is_ready(state):
                    leaving.setdefault(state.model, []).append(state)
    return {state.id for model, states in leaving.items() for state in states[: _short_of_ready(view, model)]}


def _short_of_ready(view: View, name: ModelName) -> int:
    """How many the floor lacks in ready replicas elsewhere that are coming, or could come."""
    model = view.fleet.models[name]
    if model.spec is None:
        return 0
    staying = counted(view.fleet, model)
    coming = sum(not is_ready(state) for state in staying)
    missing = shortage(view.fleet, model)
    if missing:
        request = Request(model=name, command=CommandId("drain"), now_ns=view.moment.log_ns)
        fits = bool(view.search.survey(view.fleet, view.readings, wish_of(view.fleet, request)).best)
        coming += missing if fits else 0
    return min(coming, max(0, floor(model) - sum(is_ready(state) for state in staying)))


def _leave(state: ReplicaState, left_seconds: float) -> Action:
    return Action(
        key=f"drain/{state.id}/{state.sequence}",
        about=("node", state.node),
        reason=f"node {state.node} drains",
        decide=partial(_left, replica=state.id, left_seconds=left_seconds),
    )


def _left(fleet: Fleet, _command: CommandId, *, replica: ReplicaId, left_seconds: float) -> Sequence[AnyEvent]:
    state = fleet.replicas.get(replica)
    if state is None or not isinstance(fleet.nodes[state.node].intent, NodeDraining):
        return []
    decision = why(fleet, f"node {state.node} drains", seconds_left=round(left_seconds, 1))
    return begin_drain(fleet, [replica], reason="drained", deadline_seconds=left_seconds, decision=decision)


def _finish(node: NodeState) -> Action:
    return Action(
        key=f"drained/{node.name}/{node.sequence}",
        about=("node", node.name),
        reason="its last replica ended",
        decide=partial(_finished, node=node.name),
    )


def _finished(fleet: Fleet, _command: CommandId, *, node: NodeName) -> Sequence[AnyEvent]:
    state = fleet.nodes.get(node)
    if state is None or state.replicas or not isinstance(state.intent, NodeDraining) or state.intent.finished:
        return []
    return [NodeDrainFinished(node=node)]
