"""The API process: control API, gateway and gRPC over one runtime and one router, on one HTTP port.

Invariant: what it answers comes from its own fold; NATS or PostgreSQL may be away, and it says so in `/readyz`.
"""

import asyncio
from collections.abc import Callable, Coroutine

from litestar.types import ASGIApp

from modelyard_services.api.access import Access
from modelyard_services.api.app import build_app
from modelyard_services.api.service import Service
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.http_server import serve_http
from modelyard_services.effects.process import until
from modelyard_services.router.router import Router
from modelyard_services.settings import ApiSettings

BuildGateway = Callable[[Router, Access], ASGIApp]
ServeGrpc = Callable[[Router, Access, ApiSettings], Coroutine[None, None, None]]


async def serve(
    settings: ApiSettings, stop: asyncio.Event, *, build_gateway: BuildGateway, serve_grpc: ServeGrpc
) -> None:
    """Serve until `stop` is set; the gateway and gRPC come from their own packages, whoever starts us joins them."""
    async with open_runtime(settings.process) as runtime, Router(runtime) as router:
        access = Access(runtime.fleet, settings.open_on_loopback)
        app = build_app(Service(runtime, access, router), gateway=build_gateway(router, access))
        await until(stop, _serve_all(app, settings, lambda: serve_grpc(router, access, settings)))


async def _serve_all(
    app: ASGIApp, settings: ApiSettings, serve_grpc: Callable[[], Coroutine[None, None, None]]
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(serve_http(app, host=settings.host, port=settings.port))
        if settings.grpc_port is not None:
            tasks.create_task(serve_grpc())
