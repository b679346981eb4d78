"""The gateway process: `/v1` on a router in process, and whether it is alive and ready.

Invariant: beyond loopback nobody is served without a check of who asks.
"""

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import msgspec
import structlog
import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.upstream import Pool
from modelyard_services.gateway.app import Gateway
from modelyard_services.gateway.request import Receive, Scope, Send
from modelyard_services.gateway.settings import GatewaySettings
from modelyard_services.policy.access import Access
from modelyard_services.router.router import Router

STOP_SECONDS: Final = 30
"""What answers in flight get when the process stops; longer streams are cut, as their clients are told."""

BACKLOG: Final = 2_048

_log = structlog.get_logger(__name__)


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    async with (
        open_runtime(settings.process) as runtime,
        Router(runtime, settings=settings.router) as router,
        Pool() as pool,
    ):
        access = Access(runtime.fleet, _is_loopback(settings.host))
        gateway = Gateway(router, pool, authenticate=access.client, wait_seconds=settings.wait_seconds)
        async with _listening(_Dispatcher(gateway, router), settings) as url:
            _log.info("gateway serves", gateway_url=url, router=router.incarnation)
            await stop.wait()


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


@contextlib.asynccontextmanager
async def _listening(app: _Dispatcher, settings: GatewaySettings) -> AsyncIterator[str]:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        log_level="warning",
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        yield f"http://{host}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Without uvicorn's own signal handlers: the process stops by one event, whoever asks."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _answer(send: Send, status: int, body: bytes, *, content_type: str = "application/json") -> None:
    headers = [(b"content-type", content_type.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
