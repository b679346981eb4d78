"""How many replicas a model should have, and which of those it has count (rules C2, C3, R6).

Invariant: a replica counts only while its node is heard, stays, and matches the selector; so what is lost or on
its way out is replaced elsewhere, and a replica that is being replaced counts once with its newcomer.
"""

from modelyard_events.ids import ModelName, NodeName
from modelyard_events.selectors import matches
from modelyard_events.spec import Autoscale, Schedule, SpreadAll
from modelyard_projections.fleet import (
    Alive,
    Draining,
    Fleet,
    Loading,
    ModelState,
    NodeDraining,
    NodeState,
    Placed,
    Ready,
    ReplicaState,
)


def serving(fleet: Fleet, model: ModelState) -> list[ReplicaState]:
    """The model's replicas that aren't on their way out, wherever they are."""
    return [state for state in fleet.replicas_of(model.name) if not isinstance(state.phase, Draining)]


def counted(fleet: Fleet, model: ModelState) -> list[ReplicaState]:
    """The replicas that count towards the floor."""
    staying = [state for state in serving(fleet, model) if _counts(fleet, model, state)]
    living = {state.id for state in staying}
    return [state for state in staying if state.replaces not in living]


def floor(model: ModelState) -> int:
    """The replicas that the schedule wants at least, over the fleet; spread_all wants them by node."""
    mode = model.options.mode
    return mode.min_replicas if isinstance(mode, Autoscale) else 0


def ceiling(model: ModelState) -> int | None:
    """The replicas it wants at most; None for no limit."""
    mode = model.options.mode
    if isinstance(mode, SpreadAll) or not mode.max_replicas:
        return None
    return mode.max_replicas


def shortage(fleet: Fleet, model: ModelState) -> int:
    """Replicas missing below the floor."""
    return max(0, floor(model) - len(counted(fleet, model)))


def nodes_without(fleet: Fleet, model: ModelState) -> list[NodeName]:
    """Where spread_all wants a replica and there is none: nodes that match, take replicas and have no live one."""
    if not isinstance(model.options.mode, SpreadAll):
        return []
    return [
        node.name
        for node in fleet.nodes.values()
        if node.takes_replicas and matches(model.options.node_selector, node.labels) and model.name not in node.slots
    ]


def stale(fleet: Fleet, model: ModelState) -> list[ReplicaState]:
    """Replicas that serve and are to be replaced: of an older revision, or asked to restart (rule R6)."""
    return [state for state in serving(fleet, model) if state.revision != model.revision or restarts(model, state)]


def restarts(model: ModelState, state: ReplicaState) -> bool:
    """Whether somebody asked for a fresh replica in its place."""
    counted_as = model.replicas.get(state.id)
    return counted_as is not None and counted_as.restarts


def misplaced(fleet: Fleet, model: ModelState) -> list[ReplicaState]:
    """Replicas where the selector doesn't match any more, and all but the first on a node under spread_all."""
    found = []
    taken: set[NodeName] = set()
    for state in sorted(serving(fleet, model), key=lambda each: each.replica_index):
        second = isinstance(model.options.mode, SpreadAll) and state.node in taken and state.replaces is None
        taken.add(state.node)
        if second or not _matches(model.options, fleet.nodes[state.node]):
            found.append(state)
    return found


def wanted_models(fleet: Fleet) -> list[ModelName]:
    """Models with a definition, by name: the order in which a pass looks at them."""
    return sorted(name for name, model in fleet.models.items() if model.spec is not None)


def is_starting(state: ReplicaState) -> bool:
    return isinstance(state.phase, Placed | Loading)


def is_ready(state: ReplicaState) -> bool:
    return isinstance(state.phase, Ready)


def _counts(fleet: Fleet, model: ModelState, state: ReplicaState) -> bool:
    node = fleet.nodes[state.node]
    heard = isinstance(node.liveness, Alive) and not isinstance(node.intent, NodeDraining)
    # An older revision that never got ready is stopped before it serves; it is no part of the floor.
    serves = state.revision == model.revision or is_ready(state)
    return heard and serves and _matches(model.options, node)


def _matches(options: Schedule, node: NodeState) -> bool:
    return matches(options.node_selector, node.labels)
