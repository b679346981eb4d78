"""Who asks, and what they may: tokens by digest, roles, the loopback rule.

Invariant: without a token nobody gets in as soon as a token exists or anything listens beyond loopback; the
token itself is never stored nor logged.
"""

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from modelyard_events.envelope import Actor
from modelyard_events.fleet import Role
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import ForbiddenError, UnauthorizedError

_RANK: Final[Mapping[Role, int]] = {"viewer": 0, "operator": 1, "admin": 2}
_BEARER: Final = "Bearer "
LOCAL_ACTOR: Final = "local"


class Identity(msgspec.Struct, frozen=True):
    """Who asks, and in which role."""

    actor: Actor
    role: Role


class Access(msgspec.Struct, frozen=True):
    """The rule in force: `open_on_loopback` while everything listens on loopback only."""

    fleet: Fleet
    open_on_loopback: bool

    def identify(self, headers: Mapping[str, str]) -> Identity:
        """Who sends `headers` (names in lower case).

        Raises:
            UnauthorizedError: a token is required and missing, or it is unknown.
        """
        if self.open_on_loopback and not self.fleet.tokens:
            name = headers.get("x-actor") or LOCAL_ACTOR
            return Identity(Actor("operator", name[:253]), "admin")
        authorization = headers.get("authorization", "")
        if not authorization.startswith(_BEARER):
            raise UnauthorizedError("send 'Authorization: Bearer <token>'; `modelyard token create` makes one")
        digest = token_digest(authorization.removeprefix(_BEARER).strip())
        for token in self.fleet.tokens.values():
            if hmac.compare_digest(token.digest, digest):
                return Identity(Actor("operator", token.name), token.role)
        raise UnauthorizedError("this token is unknown or revoked")


def token_digest(token: str) -> str:
    """SHA-256 of a token, in hex. Fast is right here: a token is 256 random bits, nothing to guess."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether listening on `host` stays on this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Identify(ASGIMiddleware):
    """Sets who asks on every request but the open ones."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = "open"

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        # From the application's state: the framework copies its middlewares, and a runtime can't be copied.
        access: Access = scope["litestar_app"].state.service.access
        scope["auth"] = access.identify(headers)
        await next_app(scope, receive, send)


def requires(role: Role) -> Any:
    """A guard: the request needs at least `role`."""

    def guard(connection: ASGIConnection[Any, Any, Identity, Any], _handler: BaseRouteHandler) -> None:
        identity = connection.auth
        if _RANK[identity.role] < _RANK[role]:
            raise ForbiddenError(f"{identity.actor.name} is {identity.role}; this needs {role}")

    return guard
