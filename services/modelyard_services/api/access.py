"""Who asks, on every request; what a route demands of them."""

from typing import Any

from litestar.connection import ASGIConnection
from litestar.enums import ScopeType
from litestar.handlers import BaseRouteHandler
from litestar.middleware import ASGIMiddleware
from litestar.types import ASGIApp, Receive, Scope, Send

from modelyard_events.fleet import Role
from modelyard_services.policy.access import Access, Identity


class Identify(ASGIMiddleware):
    """Sets who asks on every request but the open ones."""

    scopes = (ScopeType.HTTP,)
    exclude_opt_key = "open"

    async def handle(self, scope: Scope, receive: Receive, send: Send, next_app: ASGIApp) -> None:
        scope["litestar_app"].state.service.runtime.require_caught_up()
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        # From the application's state: the framework copies its middlewares, and a runtime can't be copied.
        access: Access = scope["litestar_app"].state.service.access
        scope["auth"] = access.identify(headers)
        await next_app(scope, receive, send)


def requires(role: Role) -> Any:
    """A guard: the request needs at least `role`."""

    def guard(connection: ASGIConnection[Any, Any, Identity, Any], _handler: BaseRouteHandler) -> None:
        connection.auth.require(role)

    return guard
