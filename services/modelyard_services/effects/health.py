"""Asks a process whether it is well, over HTTP or the gRPC health service.

Invariant: busy is not dead (rule T4): an answer that doesn't come in time is told apart from a door that is shut.
"""

import asyncio
from typing import Final

import aiohttp
import grpc
import grpc.aio
import msgspec
from grpc_health.v1 import health_pb2, health_pb2_grpc

from modelyard_events.spec import Health

GRPC_OPTIONS: Final = (
    ("grpc.use_local_subchannel_pool", 1),  # else a refused connection's back-off is shared by the next probe
    ("grpc.enable_http_proxy", 0),
)


class Healthy(msgspec.Struct, frozen=True):
    pass


class Refused(msgspec.Struct, frozen=True):
    """Nothing listens there."""


class TimedOut(msgspec.Struct, frozen=True):
    """It listens and doesn't answer: busy, or hung."""


class Unhealthy(msgspec.Struct, frozen=True):
    """It answers that it is not ready, or nothing that can be understood."""

    status: str


Outcome = Healthy | Refused | TimedOut | Unhealthy


def describe(outcome: Outcome) -> str:
    match outcome:
        case Healthy():
            return "healthy"
        case Refused():
            return "connection refused"
        case TimedOut():
            return "no answer in time"
        case Unhealthy(status):
            return f"unhealthy: {status}"


async def probe(health: Health, *, host: str, port: int, seconds: float) -> Outcome:
    """One question on a fresh connection, so that a kept one can't hide that the door is shut."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if health.http is not None:
        return await _http(f"http://{address}{health.http}", seconds)
    return await _grpc(address, health.grpc or "", seconds)


async def _http(url: str, seconds: float) -> Outcome:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
            session.get(url, allow_redirects=False) as answer,
        ):
            return Healthy() if answer.ok and answer.status < 300 else Unhealthy(f"HTTP {answer.status}")  # noqa: PLR2004
    except TimeoutError:
        return TimedOut()
    except aiohttp.ClientConnectorError:
        return Refused()
    except aiohttp.ClientError as error:
        return Unhealthy(str(error) or type(error).__name__)


async def _grpc(address: str, service: str, seconds: float) -> Outcome:
    async with grpc.aio.insecure_channel(address, options=GRPC_OPTIONS) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            async with asyncio.timeout(seconds * 2):  # grpc keeps its own time; this only bounds a bug in it
                answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            return _failure(error)
    serving = health_pb2.HealthCheckResponse.SERVING
    if answer.status == serving:
        return Healthy()
    return Unhealthy(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def _failure(error: grpc.aio.AioRpcError) -> Outcome:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut()
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return Refused()
    return Unhealthy(f"gRPC {error.code().name}: {error.details()}")
