"""A fleet on a real NATS server with real echo processes behind its replicas, for tests of router and gateway.

Invariant: nothing is left running; replicas are told into the log as a registrar would, their processes are real.
"""

import asyncio
import contextlib
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp
import msgspec
import uvicorn

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ReplicaId
from modelyard_events.replica import ReplicaLoaded
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.runtime import Runtime
from modelyard_services.effects.upstream import Pool
from modelyard_services.gateway.app import Authenticate, Gateway
from modelyard_services.router.router import Router
from modelyard_services.settings import NatsSettings, ProcessSettings, RouterSettings
from tests.support.given import a_model, a_ready_replica, an_approved_node

START_SECONDS = 20.0


class Yard:
    """The log's side of the fleet, and the processes."""

    def __init__(self, url: str, runtime: Runtime) -> None:
        self.url = url
        self.runtime = runtime
        self.processes: dict[str, Process] = {}

    async def commit(self, *events: AnyEvent) -> None:
        await self.runtime.journal.commit(self.runtime.envelope(), lambda _fleet: events)

    async def model(self, model: str = "m", *, nodes: Sequence[str] = ()) -> None:
        await self.commit(*[event for node in nodes for event in an_approved_node(node)], *a_model(model))

    async def ready(self, replica: str, *options: str, node: str, model: str = "m", **also: object) -> None:
        """A ready replica on `node`, with an echo process that has `options`."""
        port = free_port()
        self.processes[replica] = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "modelyard_services.worker.backends.echo",
            "--port", str(port), "--model", model, *options,
            stdout=DEVNULL, stderr=DEVNULL,
        )  # fmt: skip
        await listens(port)
        history = a_ready_replica(replica, node=node, model=model, **also)  # type: ignore[arg-type]
        await self.commit(*[_at(event, port) for event in history])

    def kill(self, replica: str) -> None:
        """As by a crash that nobody has told of yet; killing the dead is harmless."""
        with contextlib.suppress(ProcessLookupError):
            self.processes[replica].send_signal(signal.SIGKILL)

    async def end(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@contextlib.asynccontextmanager
async def a_yard(url: str) -> AsyncIterator[Yard]:
    """An empty fleet on the server at `url`."""
    async with open_runtime(process_settings(url, "test")) as runtime:
        await runtime.wait_ready(timeout_seconds=START_SECONDS)
        yard = Yard(url, runtime)
        try:
            yield yard
        finally:
            await yard.end()


@contextlib.asynccontextmanager
async def a_router(url: str, *, settings: RouterSettings | None = None) -> AsyncIterator[Router]:
    """A router of its own, as another process would be."""
    async with (
        open_runtime(process_settings(url, "router")) as runtime,
        Router(runtime, settings=settings) as router,
    ):
        await router.wait_ready(timeout_seconds=START_SECONDS)
        yield router


@contextlib.asynccontextmanager
async def a_gateway(
    router: Router, *, authenticate: Authenticate | None = None, wait_seconds: float = 60.0
) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a gateway on `router`, served by uvicorn as in production."""
    async with Pool() as pool:
        app = Gateway(router, pool, authenticate=authenticate, wait_seconds=wait_seconds)
        async with served(app) as url, aiohttp.ClientSession(url) as client:
            yield client


@contextlib.asynccontextmanager
async def served(app: object) -> AsyncIterator[str]:
    """`app` under uvicorn on a free port; its URL."""
    port = free_port()
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # any ASGI application
        port=port, http="httptools", lifespan="off", access_log=False, log_level="critical",
    )  # fmt: skip
    server = uvicorn.Server(config)
    sockets = [socket.create_server(("127.0.0.1", port))]
    task = asyncio.create_task(server.serve(sockets))
    await listens(port)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


def process_settings(url: str, process: str) -> ProcessSettings:
    return ProcessSettings(process=process, nats=NatsSettings(url=url))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def listens(port: int) -> None:
    """Wait until somebody accepts on `port`."""
    async with asyncio.timeout(START_SECONDS):
        while True:
            with contextlib.suppress(OSError):
                _reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                await writer.wait_closed()
                return
            await asyncio.sleep(0.02)


async def eventually(holds: Callable[[], bool], *, seconds: float = 10.0) -> None:
    """Wait until `holds`, for what has no event to wait on."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


def leases_on(router: Router, replica: str) -> int:
    """What the router reports to hold on `replica`."""
    return router._report(leaving=False).in_flight.get(ReplicaId(replica), 0)


def _at(event: AnyEvent, port: int) -> AnyEvent:
    if isinstance(event, ReplicaLoaded):
        return msgspec.structs.replace(event, address=f"127.0.0.1:{port}")
    return event
