"""How the fleet's own events change settings, tokens and the mass-loss brake."""

from typing import assert_never

from modelyard_events.envelope import Recorded
from modelyard_events.fleet import (
    FleetMassLossCleared,
    FleetMassLossDeclared,
    FleetOwnEvent,
    FleetRegistrationTokenCreated,
    FleetRegistrationTokenRevoked,
    FleetSettingsChanged,
    FleetTokenCreated,
    FleetTokenRevoked,
)
from modelyard_projections.fleet.picture import FleetState
from modelyard_projections.fleet.state import RegistrationToken, Token


def evolve_fleet(fleet: FleetState, event: FleetOwnEvent, recorded: Recorded) -> None:
    """Apply one of the fleet's own events."""
    match event:
        case FleetSettingsChanged():
            fleet.settings = event.settings
            fleet.touch("settings", "settings")
        case FleetMassLossDeclared():
            fleet.mass_loss = event.nodes
            fleet.touch("settings", "settings")
        case FleetMassLossCleared():
            fleet.mass_loss = ()
            fleet.touch("settings", "settings")
        case FleetTokenCreated(name=name, role=role, digest=digest):
            fleet.tokens[name] = Token(name, role, digest, recorded.time_ns)
            fleet.touch("token", name)
        case FleetTokenRevoked(name=name):
            del fleet.tokens[name]
            fleet.touch("token", name)
        case FleetRegistrationTokenCreated(name=name, digest=digest):
            fleet.registration_tokens[name] = RegistrationToken(name, digest, recorded.time_ns)
            fleet.touch("registration_token", name)
        case FleetRegistrationTokenRevoked(name=name):
            del fleet.registration_tokens[name]
            fleet.touch("registration_token", name)
        case _:
            assert_never(event)
