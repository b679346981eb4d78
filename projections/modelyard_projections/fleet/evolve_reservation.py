"""How reservation events change what is held on a node.

Invariant: `node.reserved` is the sum of its living reservations per device, at every sequence (I1, I7).
"""

from collections.abc import Mapping
from typing import assert_never

from modelyard_events.envelope import Recorded
from modelyard_events.ids import NodeName
from modelyard_events.reservation import (
    OperatorHolder,
    ReplicaHolder,
    ReservationEvent,
    ReservationGranted,
    ReservationReleased,
    ReservationResized,
)
from modelyard_projections.fleet.evolve_node import NANOSECONDS
from modelyard_projections.fleet.picture import FleetState
from modelyard_projections.fleet.state import NodeState, ReservationState


def evolve_reservation(fleet: FleetState, event: ReservationEvent, recorded: Recorded) -> None:
    """Apply one reservation event."""
    node = fleet.nodes[NodeName(event.node)]
    fleet.touch("node", node.name)
    match event:
        case ReservationGranted():
            fleet.reservations[event.reservation] = _granted(event, recorded)
            node.reservations[event.reservation] = None
            _hold(node, event.vram, sign=1)
            fleet.touch("reservation", event.reservation)
        case ReservationResized():
            reservation = fleet.reservations[event.reservation]
            _hold(node, reservation.vram, sign=-1)
            _hold(node, event.vram, sign=1)
            reservation.vram = event.vram
            fleet.touch("reservation", event.reservation)
            _note_measured(fleet, reservation)
        case ReservationReleased():
            for released in event.reservations:
                _hold(node, fleet.reservations.pop(released).vram, sign=-1)
                del node.reservations[released]
                fleet.touch("reservation", released)
        case _:
            assert_never(event)


def _granted(event: ReservationGranted, recorded: Recorded) -> ReservationState:
    holder = event.holder
    seconds = holder.seconds if isinstance(holder, OperatorHolder) else None
    return ReservationState(
        id=event.reservation,
        node=NodeName(event.node),
        holder=holder,
        vram=event.vram,
        since_ns=recorded.time_ns,
        until_ns=None if seconds is None else recorded.time_ns + round(seconds * NANOSECONDS),
    )


def _note_measured(fleet: FleetState, reservation: ReservationState) -> None:
    """A replica's reservation is resized to its measured footprint only (R3): from then on it may have neighbours."""
    if isinstance(reservation.holder, ReplicaHolder):
        replica = fleet.replicas[reservation.holder.replica]
        replica.footprint_rule, replica.exclusive = "measured", False
        fleet.touch("replica", replica.id)


def _hold(node: NodeState, vram: Mapping[int, int], *, sign: int) -> None:
    for device, size in vram.items():
        held = node.reserved.get(device, 0) + sign * size
        if held:
            node.reserved[device] = held
        else:
            node.reserved.pop(device, None)
