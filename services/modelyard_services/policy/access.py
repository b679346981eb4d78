"""Who asks, and what they may: tokens by digest, roles, the loopback rule. Pure.

Invariant: without a token nobody gets in as soon as a token exists or anything listens beyond loopback; the token
itself is never stored nor logged.
"""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from modelyard_events.envelope import Actor
from modelyard_events.fleet import Role
from modelyard_events.ids import NAME_LENGTH_MAX
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ForbiddenError, UnauthorizedError
from modelyard_services.policy.tokens import token_of

_RANK: Final[Mapping[Role, int]] = {"viewer": 0, "operator": 1, "admin": 2}
LOCAL_ACTOR: Final = "local"
_BEARER: Final = "Bearer "


class Identity(msgspec.Struct, frozen=True):
    """Who asks, and in which role."""

    actor: Actor
    role: Role

    def require(self, role: Role) -> None:
        """Refuse whoever has less than `role`.

        Raises:
            ForbiddenError: this one has.
        """
        if _RANK[self.role] < _RANK[role]:
            raise ForbiddenError(f"{self.actor.name} is {self.role}; this needs {role}")


class Access(msgspec.Struct, frozen=True):
    """The rule in force: `open_on_loopback` while everything listens on loopback only.

    `on_use` hears the name of each token that lets somebody in.
    """

    fleet: Fleet
    open_on_loopback: bool
    on_use: Callable[[str], None] = lambda _name: None

    def identify(self, headers: Mapping[str, str]) -> Identity:
        """Who sends `headers` (names in lower case).

        Raises:
            UnauthorizedError: a token is required and missing, or it is unknown.
        """
        if self.open_on_loopback and not self.fleet.tokens:
            name = headers.get("x-actor") or LOCAL_ACTOR
            return Identity(Actor("operator", name[:NAME_LENGTH_MAX]), "admin")
        authorization = headers.get("authorization", "")
        if not authorization.startswith(_BEARER):
            raise UnauthorizedError("send 'Authorization: Bearer <token>'; `modelyard token create` makes one")
        token = token_of(self.fleet, authorization.removeprefix(_BEARER).strip())
        if token is None:
            raise UnauthorizedError("this token is unknown or revoked")
        self.on_use(token.name)
        return Identity(Actor("operator", token.name), token.role)

    def client(self, headers: Mapping[str, str]) -> Actor:
        """The client of the gateway behind `headers`; every role may send requests to models.

        Raises:
            UnauthorizedError: as `identify`.
        """
        return Actor("client", self.identify(headers).actor.name)


def is_loopback(host: str) -> bool:
    """Whether listening on `host` stays on this machine: all of 127.0.0.0/8, ::1, localhost. The one definition."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host[1:-1] if host[:1] + host[-1:] == "[]" else host)
    except ValueError:
        return False  # a name that resolves to what it likes
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
