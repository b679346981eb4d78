"""When the next deadline falls, so that a pass is there in time for it and needn't look all the time.

Invariant: a deadline that passed is no longer due here: the pass after it has dealt with it, or can't.
"""

from collections.abc import Iterator

from modelyard_projections.fleet import Alive, Draining, Fleet, Loading, NodeDraining, NodeState, Placed, ReplicaState
from modelyard_services.policy.deadlines import overstayed_ns, told_by_ns
from modelyard_services.policy.filters import backoff_until_ns


def next_due_ns(fleet: Fleet, *, now_ns: int) -> int | None:
    """The first deadline after `now_ns`, both on the log's clock; None when nothing is under way."""
    return min((due for due in _deadlines(fleet) if due > now_ns), default=None)


def is_draining(fleet: Fleet) -> bool:
    """Whether a replica waits for its last lease, which no event tells of."""
    return any(
        isinstance(state.phase, Draining)
        and not state.phase.stopping
        and isinstance(fleet.nodes[state.node].liveness, Alive)
        for state in fleet.replicas.values()
    )


def _deadlines(fleet: Fleet) -> Iterator[int]:
    for node in fleet.nodes.values():
        yield from _of_node(fleet, node)
    for replica in fleet.replicas.values():
        yield from _of_replica(fleet, replica)
    yield from (model.breaker.until_ns for model in fleet.models.values() if model.breaker is not None)
    for reservation in fleet.reservations.values():
        if reservation.until_ns is not None:
            yield reservation.until_ns


def _of_node(fleet: Fleet, node: NodeState) -> Iterator[int]:
    if isinstance(node.intent, NodeDraining) and not node.intent.finished:
        yield node.intent.deadline_ns
    yield from (backoff_until_ns(fleet.settings, failures) for failures in node.load_failures.values())


def _of_replica(fleet: Fleet, state: ReplicaState) -> Iterator[int]:
    if not isinstance(fleet.nodes[state.node].liveness, Alive):
        return
    if isinstance(state.phase, Placed | Loading | Draining):
        # A newcomer that waits for its victims has no deadline of its own yet.
        due_ns = overstayed_ns(fleet, state) if state.phase.deadline_ns is None else state.phase.deadline_ns
        if due_ns is not None:
            yield due_ns if isinstance(state.phase, Draining) else max(due_ns, told_by_ns(fleet, state))
