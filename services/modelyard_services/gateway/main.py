"""The gateway process: `/v1` on a router in process, and whether it is alive and ready.

Invariant: beyond loopback nobody is served without a check of who asks.
"""

import asyncio
from typing import Final

import structlog

from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.http_server import serve_http
from modelyard_services.effects.process import until
from modelyard_services.effects.status import answer_status
from modelyard_services.effects.upstream import Pool
from modelyard_services.errors import ModelyardError
from modelyard_services.gateway.app import Gateway, headers_of, refuse
from modelyard_services.gateway.request import Receive, Scope, Send
from modelyard_services.gateway.settings import GatewaySettings
from modelyard_services.policy.access import Access, is_loopback
from modelyard_services.router.router import Router

GUARDED: Final = frozenset({"/readyz", "/metrics"})

_log = structlog.get_logger(__name__)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    async with (
        open_runtime(settings.process) as runtime,
        Router(runtime, settings=settings.router) as router,
        Pool() as pool,
    ):
        access = Access(runtime.fleet, is_loopback(settings.host), runtime.note_token_use)
        gateway = Gateway(router, pool, authenticate=access.client)
        _log.info("gateway serves", host=settings.host, port=settings.port, router=router.incarnation)
        app = Front(gateway, router, access)
        await until(stop, serve_http(app, host=settings.host, port=settings.port))


class Front:
    """The gateway with its health and metrics beside it, which beyond loopback want a viewer's token."""

    def __init__(self, gateway: Gateway, router: Router, access: Access) -> None:
        self._gateway = gateway
        self._router = router
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        path = scope.get("path", "")
        if path in GUARDED and not self._access.open_on_loopback:
            try:
                self._access.identify(headers_of(scope)).require("viewer")
            except ModelyardError as error:
                await refuse(send, error)
                return
        if not await answer_status(path, lambda: self._router.problems, send):
            await self._gateway(scope, receive, send)
