"""Entities that a command names, or the refusal that says which one doesn't exist.

Invariant: nothing is ever changed or reported as changed under a name that nobody has (X28).
"""

from modelyard_events.ids import NodeName, ReservationId
from modelyard_projections.fleet import Fleet, NodeState, ReservationState
from modelyard_services.errors import NotFoundError


def known_node(fleet: Fleet, node: NodeName) -> NodeState:
    """The node of that name.

    Raises:
        NotFoundError: there is none.
    """
    state = fleet.nodes.get(node)
    if state is None:
        raise NotFoundError(f"no node is named {node!r}", field="node", value=node)
    return state


def known_reservation(fleet: Fleet, reservation: ReservationId) -> ReservationState:
    """The living reservation of that id.

    Raises:
        NotFoundError: there is none, or it was released.
    """
    state = fleet.reservations.get(reservation)
    if state is None:
        detail = f"no living reservation has the id {reservation!r}"
        raise NotFoundError(detail, field="reservation", value=reservation)
    return state
