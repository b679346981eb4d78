"""The API process: control API, gateway and gRPC over one runtime and one router, on one HTTP port.

Invariant: what it answers comes from its own fold; NATS or PostgreSQL may be away, and it says so in `/readyz`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from litestar.types import ASGIApp

from modelyard_services.api.app import build_app
from modelyard_services.api.service import Service
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.database import Database
from modelyard_services.effects.http_server import serve_http
from modelyard_services.effects.process import until
from modelyard_services.policy.access import Access
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.router.router import Router
from modelyard_services.settings import ApiSettings

Joined = Callable[[Router, Access], contextlib.AbstractAsyncContextManager[ASGIApp]]
"""The gateway over a router, and gRPC beside it: from packages of their own, which whoever starts us joins."""


async def serve(settings: ApiSettings, stop: asyncio.Event, *, joined: Joined) -> None:
    """Serve until `stop` is set."""
    async with (
        open_runtime(settings.process) as runtime,
        Router(runtime, settings=settings.router) as router,
        _database(settings) as database,
    ):
        access = Access(runtime.fleet, settings.open_on_loopback, runtime.note_token_use)
        index = PlacementIndex()
        runtime.on_batch(lambda _events, touched: index.note(runtime.fleet, touched))
        async with joined(router, access) as gateway:
            service = Service(runtime, access, router, database, index, router.homes)
            app = build_app(service, gateway=gateway)
            await until(stop, serve_http(app, host=settings.host, port=settings.port))


@contextlib.asynccontextmanager
async def _database(settings: ApiSettings) -> AsyncIterator[Database | None]:
    if settings.database_url is None:
        yield None
        return
    database = Database(settings.database_url, process="api")
    try:
        yield database
    finally:
        await database.close()
