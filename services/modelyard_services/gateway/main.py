"""The gateway process: `/v1` on a router in process, and whether it is alive and ready.

Invariant: beyond loopback nobody is served without a check of who asks.
"""

import asyncio

import msgspec
import structlog
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.http_server import serve_http
from modelyard_services.effects.process import until
from modelyard_services.effects.upstream import Pool
from modelyard_services.gateway.app import Gateway
from modelyard_services.gateway.request import Receive, Scope, Send
from modelyard_services.gateway.settings import GatewaySettings
from modelyard_services.policy.access import Access, is_loopback
from modelyard_services.router.router import Router

_log = structlog.get_logger(__name__)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    async with (
        open_runtime(settings.process) as runtime,
        Router(runtime, settings=settings.router) as router,
        Pool() as pool,
    ):
        access = Access(runtime.fleet, is_loopback(settings.host))
        gateway = Gateway(router, pool, authenticate=access.client, wait_seconds=settings.wait_seconds)
        _log.info("gateway serves", host=settings.host, port=settings.port, router=router.incarnation)
        app = _Dispatcher(gateway, router)
        await until(stop, serve_http(app, host=settings.host, port=settings.port))


class _Dispatcher:
    """Health and metrics beside the gateway."""

    def __init__(self, gateway: Gateway, router: Router) -> None:
        self._gateway = gateway
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match scope.get("path"):
            case "/healthz":
                await _answer(send, 200, b'{"status":"alive"}')
            case "/readyz":
                problems = self._router.problems
                status = {"status": "not ready" if problems else "ready", "problems": problems}
                await _answer(send, 503 if problems else 200, msgspec.json.encode(status))
            case "/metrics":
                await _answer(send, 200, generate_latest(), content_type=CONTENT_TYPE_LATEST)
            case _:
                await self._gateway(scope, receive, send)


async def _answer(send: Send, status: int, body: bytes, *, content_type: str = "application/json") -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
