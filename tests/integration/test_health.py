"""Health checks against real servers: what a model's definition asks is asked, and only a yes is one (rules W3, T4)."""

from collections.abc import AsyncIterator, Awaitable, Callable

import grpc.aio
import pytest
from aiohttp import web
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer

from modelyard_events.spec import Health
from modelyard_services.effects.health import Healthy, Outcome, Refused, Unhealthy, probe

HOST = "127.0.0.1"
SECONDS = 10.0


@pytest.fixture
async def http_port() -> AsyncIterator[int]:
    """A server that is ready at one path, isn't at another, and sends away from a third."""
    application = web.Application()
    for path, status in (("/ready", 200), ("/health", 503), ("/moved", 302)):
        application.router.add_get(path, answering(status))
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, HOST, 0)
    await site.start()
    yield runner.addresses[0][1]
    await runner.cleanup()


def answering(status: int) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers={"location": "/ready"})

    return answer


@pytest.fixture
async def grpc_port() -> AsyncIterator[int]:
    """A server with one service that serves and one that doesn't."""
    service = HealthServicer()
    service.set("serves", health_pb2.HealthCheckResponse.SERVING)
    service.set("loads", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(service, server)
    port = server.add_insecure_port(f"{HOST}:0")
    await server.start()
    yield port
    await server.stop(None)


async def asked(port: int, health: Health) -> Outcome:
    return await probe(health, host=HOST, port=port, seconds=SECONDS)


async def test_over_http_the_models_own_path_is_asked_and_only_success_is_well(http_port: int) -> None:
    """W3: a server that sends elsewhere hasn't said that it is ready."""
    assert await asked(http_port, Health(http="/ready")) == Healthy()
    assert await asked(http_port, Health(http="/health")) == Unhealthy("HTTP 503")
    assert await asked(http_port, Health(http="/moved")) == Unhealthy("HTTP 302")
    assert await asked(http_port, Health(http="/no-such")) == Unhealthy("HTTP 404")


async def test_over_grpc_the_models_own_service_is_asked_and_only_serving_is_well(grpc_port: int) -> None:
    """W3."""
    assert await asked(grpc_port, Health(grpc="serves")) == Healthy()
    assert await asked(grpc_port, Health(grpc="loads")) == Unhealthy("NOT_SERVING")
    unknown = await asked(grpc_port, Health(grpc="no-such"))
    assert isinstance(unknown, Unhealthy)
    assert unknown.status.startswith("gRPC NOT_FOUND")


async def test_where_nothing_listens_the_door_is_shut_for_both(grpc_port: int) -> None:
    """T4: refused is not unwell."""
    assert await asked(grpc_port, Health(http="/health")) != Refused()
    assert await asked(1, Health(http="/health")) == Refused()
    assert await asked(1, Health(grpc="")) == Refused()
