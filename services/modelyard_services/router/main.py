"""The router process: leases over gRPC, with the standard health service and reflection.

Invariant: it says that it serves exactly while requests are taken: the fold has caught up and the others hear it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import grpc.aio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from modelyard_services.effects.connect import open_runtime
from modelyard_services.policy.access import Access, is_loopback
from modelyard_services.router.proto.modelyard.v1 import scheduler_pb2
from modelyard_services.router.proto.modelyard.v1.scheduler_pb2_grpc import add_SchedulerServicer_to_server
from modelyard_services.router.router import Router
from modelyard_services.router.scheduler import Scheduler
from modelyard_services.router.settings import RouterProcessSettings

STOP_SECONDS: Final = 5.0
"""What calls in flight get when the process stops: those that wait for a load are told to ask elsewhere."""

HEALTH_SECONDS: Final = 0.25

_SERVICE: Final = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"].full_name
_OPTIONS: Final = (("grpc.so_reuseport", 0),)  # a second process on the same port is an error, not a share

_log = structlog.get_logger(__name__)


async def serve(settings: RouterProcessSettings, stop: asyncio.Event) -> None:
    """Run until `stop` is set."""
    async with (
        open_runtime(settings.process) as runtime,
        Router(runtime, settings=settings.router) as router,
    ):
        access = Access(runtime.fleet, is_loopback(settings.grpc_host), runtime.note_token_use)
        async with scheduler(router, f"{settings.grpc_host}:{settings.grpc_port}", access=access) as address:
            _log.info("router serves", grpc_address=address, router=router.incarnation)
            await stop.wait()


@contextlib.asynccontextmanager
async def scheduler(router: Router, address: str, *, access: Access) -> AsyncIterator[str]:
    """The gRPC server on `address` while the context lasts; the address it really has.

    Raises:
        RuntimeError: somebody else listens there.
    """
    server = grpc.aio.server(options=_OPTIONS)
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined]  # its stubs forgot it
    add_SchedulerServicer_to_server(  # type: ignore[no-untyped-call]  # generated code is untyped
        Scheduler(router, access), server
    )
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    reflection.enable_server_reflection((_SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    port = server.add_insecure_port(address)
    await server.start()
    told = asyncio.create_task(_tell_health(router, servicer))
    try:
        yield f"{address.rpartition(':')[0]}:{port}"
    finally:
        told.cancel()
        await asyncio.gather(told, return_exceptions=True)
        await servicer.enter_graceful_shutdown()
        await server.stop(STOP_SECONDS)


async def _tell_health(router: Router, servicer: Any) -> None:
    status = health_pb2.HealthCheckResponse
    while True:
        now = status.NOT_SERVING if router.problems else status.SERVING
        for service in (_SERVICE, ""):
            await servicer.set(service, now)
        await asyncio.sleep(HEALTH_SECONDS)
