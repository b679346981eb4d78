"""How the fleet's own events change settings, tokens and the mass-loss brake."""

from typing import Final, assert_never

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
from modelyard_projections.fleet.state import RegistrationToken, RevokedToken, Token

REVOKED_MAX: Final = 1_000
"""Revoked tokens remembered, the newest: as many as may live. The log has them all."""


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
            fleet.tokens[name] = Token(name, role, digest, recorded.time_ns, recorded.envelope.actor)
            fleet.touch("token", name)
        case FleetTokenRevoked(name=name):
            _revoke(fleet, fleet.tokens.pop(name), recorded)
            fleet.touch("token", name)
        case FleetRegistrationTokenCreated(name=name, digest=digest):
            made = RegistrationToken(name, digest, recorded.time_ns, recorded.envelope.actor)
            fleet.registration_tokens[name] = made
            fleet.touch("registration_token", name)
        case FleetRegistrationTokenRevoked(name=name):
            _revoke(fleet, fleet.registration_tokens.pop(name), recorded)
            fleet.touch("registration_token", name)
        case _:
            assert_never(event)


def _revoke(fleet: FleetState, token: Token | RegistrationToken, recorded: Recorded) -> None:
    fleet.revoked_tokens[token.digest] = RevokedToken(
        name=token.name,
        role=token.role if isinstance(token, Token) else None,
        digest=token.digest,
        since_ns=token.since_ns,
        by=token.by,
        revoked_ns=recorded.time_ns,
        revoked_by=recorded.envelope.actor,
    )
    if len(fleet.revoked_tokens) > REVOKED_MAX:
        del fleet.revoked_tokens[next(iter(fleet.revoked_tokens))]
