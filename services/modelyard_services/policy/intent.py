"""What operators decide of a node as a whole: may it serve, should it take work, is it still ours.

Invariant: admission changes here and at a first registration only, so nothing that a worker does or suffers ever
approves a node (I6, X9); a removed node leaves no replica and no reservation behind (N13).
"""

from typing import Final

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import NodeName
from modelyard_events.node import (
    NodeApproved,
    NodeCordoned,
    NodeDrainFinished,
    NodeDrainStarted,
    NodeRejected,
    NodeRemoved,
    NodeResumed,
)
from modelyard_events.reservation import ReservationReleased
from modelyard_projections.fleet import Fleet, NodeDraining, Schedulable
from modelyard_services.errors import ConflictError
from modelyard_services.policy.ending import begin_drain, end
from modelyard_services.policy.known import known_node

DRAIN_SECONDS_MAX: Final = 7 * 86_400.0
"""A week: longer than any stream lives, short enough that a mistyped deadline still ends."""

REASON_LENGTH_MAX: Final = 1_000
"""Characters of an operator's reason: a paragraph, far below the limit of an event."""


def approve(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """Admit the node, pending or rejected."""
    return [] if known_node(fleet, node).admission == "approved" else [NodeApproved(node=node)]


def reject(fleet: Fleet, *, node: NodeName, reason: str = "") -> list[AnyEvent]:
    """Refuse the node; what it serves until now drains."""
    if len(reason) > REASON_LENGTH_MAX:
        raise InvalidValueError("reason", f"{reason[:20]}…", f"is longer than {REASON_LENGTH_MAX} characters")
    state = known_node(fleet, node)
    if state.admission == "rejected":
        return []
    drain_seconds = fleet.settings.drain_deadline_seconds
    drained = begin_drain(fleet, state.replicas, reason="drained", deadline_seconds=drain_seconds)
    return [NodeRejected(node=node, reason=reason), *drained]


def cordon(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """Nothing new. A draining node takes nothing new already."""
    return [NodeCordoned(node=node)] if isinstance(known_node(fleet, node).intent, Schedulable) else []


def uncordon(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """Undo a cordon, and only that: a drain is undone by `resume`, said out loud.

    Raises:
        ConflictError: the node is draining.
    """
    if isinstance(known_node(fleet, node).intent, NodeDraining):
        raise ConflictError(f"node {node!r} is draining, not cordoned; resume it instead", field="node", value=node)
    return resume(fleet, node=node)


def resume(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """Undo cordon or drain; approves nobody (N10)."""
    return [] if isinstance(known_node(fleet, node).intent, Schedulable) else [NodeResumed(node=node)]


def drain(fleet: Fleet, *, node: NodeName, deadline_seconds: float | None = None) -> list[AnyEvent]:
    """Nothing new, and empty by the deadline; the reconciler moves the replicas (N10).

    A node that drains already keeps its deadline, else a repeated command would put it off for ever.
    """
    seconds = fleet.settings.drain_deadline_seconds if deadline_seconds is None else deadline_seconds
    if not 0 <= seconds <= DRAIN_SECONDS_MAX:
        raise InvalidValueError("deadline_seconds", seconds, f"is out of range; give 0 … {DRAIN_SECONDS_MAX:.0f}")
    draining = isinstance(known_node(fleet, node).intent, NodeDraining)
    return [] if draining else [NodeDrainStarted(node=node, deadline_seconds=seconds)]


def drain_finished(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """Note that a draining node is empty."""
    state = known_node(fleet, node)
    empty = isinstance(state.intent, NodeDraining) and not state.intent.finished and not state.replicas
    return [NodeDrainFinished(node=node)] if empty else []


def remove(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """End the node with its labels, overrides, replicas and all reservations, operators' too (N13)."""
    state = known_node(fleet, node)
    ended = end(fleet, state.replicas, reason="node_removed")
    held_by_replicas = {fleet.replicas[replica].reservation for replica in state.replicas}
    operators = tuple(reservation for reservation in state.reservations if reservation not in held_by_replicas)
    released: list[AnyEvent] = [ReservationReleased(node=node, reservations=operators)] if operators else []
    return [*ended, *released, NodeRemoved(node=node)]
