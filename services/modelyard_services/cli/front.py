"""The gateway and gRPC joined to the API process: packages that never import one another meet here."""

import contextlib
from collections.abc import AsyncIterator

from litestar.types import ASGIApp

from modelyard_services.effects.upstream import Pool
from modelyard_services.gateway.app import Gateway
from modelyard_services.policy.access import Access
from modelyard_services.router.main import scheduler
from modelyard_services.router.router import Router
from modelyard_services.settings import ApiSettings


@contextlib.asynccontextmanager
async def joined(settings: ApiSettings, router: Router, access: Access) -> AsyncIterator[ASGIApp]:
    """The gateway as an application, with gRPC beside it where the settings say."""
    async with contextlib.AsyncExitStack() as stack:
        pool = await stack.enter_async_context(Pool())
        if settings.grpc_port is not None:
            address = f"{settings.host}:{settings.grpc_port}"
            await stack.enter_async_context(scheduler(router, address, access=access))
        gateway = Gateway(router, pool, authenticate=access.client)
        yield gateway  # type: ignore[misc]  # it speaks ASGI with plain dictionaries
