"""One event's effect on the fleet: the dispatch by aggregate.

Invariant: a node's events touch nodes, replicas and reservations only, a model's the model only; so a worker
folds its own node's subject with the same code and needs nothing else.
"""

from modelyard_events.base import FleetEvent, ModelEvent
from modelyard_events.envelope import Recorded
from modelyard_events.replica import ReplicaEvent
from modelyard_events.reservation import ReservationEvent
from modelyard_projections.fleet.evolve_fleet import evolve_fleet
from modelyard_projections.fleet.evolve_model import evolve_model
from modelyard_projections.fleet.evolve_node import evolve_node
from modelyard_projections.fleet.evolve_replica import evolve_replica
from modelyard_projections.fleet.evolve_reservation import evolve_reservation
from modelyard_projections.fleet.picture import FleetState


def evolve(fleet: FleetState, recorded: Recorded) -> None:
    """Apply `recorded` to `fleet`.

    Raises:
        KeyError: it refers to an entity that doesn't exist.
    """
    event = recorded.event
    if isinstance(event, ModelEvent):
        evolve_model(fleet, event, recorded)
    elif isinstance(event, FleetEvent):
        evolve_fleet(fleet, event, recorded)
    elif isinstance(event, ReplicaEvent):
        evolve_replica(fleet, event, recorded)
    elif isinstance(event, ReservationEvent):
        evolve_reservation(fleet, event, recorded)
    else:
        evolve_node(fleet, event, recorded)
