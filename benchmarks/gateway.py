"""The gateway beside what it could cost: the backend alone, a bare aiohttp proxy, a bare proxy with a library client.

    python benchmarks/gateway.py [--seconds 2] [--rounds 5] [--connections 1,32,128]

Everything runs in one go on the same cores: load generator, one proxy at a time, one backend. Each gets short
slices in turn, and its best one counts. Ratios between the rows of one run say most; figures belong to the machine.
"""

import argparse
import asyncio
import multiprocessing
import os
import platform
import socket
import statistics
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from typing import Any, Final

import aiohttp
import httptools
import msgspec
import psutil
import uvicorn
import uvloop
from aiohttp import web

from modelyard_events.envelope import AnyEvent
from modelyard_events.spec import Health
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.health import Healthy, Outcome
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.effects.tracing import Traced, tracing
from modelyard_services.effects.upstream import Pool
from modelyard_services.gateway.app import Gateway
from modelyard_services.router.probes import Prober
from modelyard_services.router.router import Router
from tests.support.given import a_model, a_ready_replica, an_approved_node

BODY: Final = b'{"model":"m","input":"The quick brown fox jumps over the lazy dog"}'
ANSWER: Final = msgspec.json.encode(
    {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.1] * 64}], "model": "m"}
)
PATH: Final = "/v1/embeddings"
WARM_UP_SECONDS: Final = 0.3
Main = Callable[[int, int], Coroutine[Any, Any, None]]
Process = multiprocessing.process.BaseProcess


class Backend(asyncio.Protocol):
    """Answers every request at once with the same embedding."""

    ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(ANSWER) + ANSWER

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        self._transport.write(self.ANSWER)  # type: ignore[attr-defined]


async def backend(port: int, _upstream: int) -> None:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port)
    await server.serve_forever()


async def gateway(port: int, upstream: int) -> None:
    """The real gateway and router over a fleet of one ready replica."""

    async def healthy(_address: str, _health: Health) -> Outcome:
        return Healthy()

    async with in_memory("bench", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=5)
        events: list[AnyEvent] = [*an_approved_node(), *a_model(), *a_ready_replica()]
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: [_moved(event, upstream) for event in events])
        async with Router(runtime, prober=Prober(asked=healthy)) as router, Pool() as pool:
            await router.wait_ready(timeout_seconds=5)
            await _uvicorn(Gateway(router, pool), port)


async def traced_gateway(port: int, upstream: int) -> None:
    """The same, with every request's spans exported by OTLP; the backend takes them as it takes anything."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = f"http://127.0.0.1:{upstream}"
    with tracing(Traced("gateway")):
        await gateway(port, upstream)


def _moved(event: AnyEvent, upstream: int) -> AnyEvent:
    return msgspec.structs.replace(event, address=f"127.0.0.1:{upstream}") if hasattr(event, "address") else event


async def aiohttp_proxy(port: int, upstream: int) -> None:
    """A bare proxy as one writes it with aiohttp: server and client."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:

        async def forward(request: web.Request) -> web.StreamResponse:
            body = await request.read()
            url = f"http://127.0.0.1:{upstream}{request.path_qs}"
            async with session.request(request.method, url, data=body, headers=request.headers) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", forward)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        await asyncio.Event().wait()


async def library_proxy(port: int, upstream: int) -> None:
    """The same server as ours, with aiohttp's client instead of our own connections, and no router."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            body = (await receive())["body"]
            url = f"http://127.0.0.1:{upstream}{scope['path']}"
            async with session.post(url, data=body) as answer:
                content = await answer.read()
                headers = [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json")]
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                await send({"type": "http.response.body", "body": content})

        await _uvicorn(app, port)


async def _uvicorn(app: Any, port: int) -> None:
    config = uvicorn.Config(
        app, host="127.0.0.1", port=port, http="httptools", lifespan="off", access_log=False, log_level="warning"
    )
    await uvicorn.Server(config).serve()


class Client(asyncio.Protocol):
    """One connection that asks again as soon as it is answered."""

    REQUEST = (
        b"POST %b HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\naccept: */*\r\n"
        b"content-length: %d\r\n\r\n" % (PATH.encode(), len(BODY)) + BODY
    )

    def __init__(self, seconds: list[float], until: float) -> None:
        self._seconds = seconds
        self._until = until
        self._asked_at = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._ask()

    def _ask(self) -> None:
        self._asked_at = time.perf_counter()
        self._transport.write(self.REQUEST)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() != 200:  # noqa: PLR2004
            self.done.set_exception(RuntimeError(f"HTTP {self._parser.get_status_code()}"))
            self._transport.close()
            return
        now = time.perf_counter()
        self._seconds.append(now - self._asked_at)
        if now < self._until:
            self._ask()
        else:
            self._transport.close()
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("hung up"))


async def load(port: int, *, connections: int, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()
    taken: list[float] = []
    until = time.perf_counter() + seconds
    clients = [
        (await loop.create_connection(lambda: Client(taken, until), "127.0.0.1", port))[1] for _ in range(connections)
    ]
    await asyncio.gather(*[client.done for client in clients])
    return taken


def _process(main: Main, port: int, upstream: int) -> None:
    uvloop.run(main(port, upstream))


def started(main: Main, *, upstream: int) -> tuple[Process, int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = multiprocessing.get_context("spawn").Process(target=_process, args=(main, port, upstream), daemon=True)
    process.start()
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        time.sleep(0.05)
    raise TimeoutError(f"{main.__name__} didn't start")


class Figures(msgspec.Struct):
    """`cpu_us` is what the measured process itself burnt per request: it holds on a busy machine too."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float


Row = dict[int, Figures]

PROXIES: Final[dict[str, Main]] = {
    "bare aiohttp proxy": aiohttp_proxy,
    "bare uvicorn + aiohttp client": library_proxy,
    "modelyard gateway": gateway,
    "modelyard gateway, traced": traced_gateway,
}


async def measure(process: Process, port: int, connections: int, seconds: float) -> Figures:
    """One slice of load."""
    watched = psutil.Process(process.pid)
    await load(port, connections=connections, seconds=WARM_UP_SECONDS)
    before = sum(watched.cpu_times()[:2])
    taken = await load(port, connections=connections, seconds=seconds)
    burnt = sum(watched.cpu_times()[:2]) - before
    quantiles = statistics.quantiles(taken, n=100)
    return Figures(len(taken) / seconds, quantiles[49] * 1e3, quantiles[98] * 1e3, burnt / len(taken) * 1e6)


def run(seconds: float, connections: list[int], rounds: int) -> dict[str, Row]:
    """All in turn, again and again; the best slice of each counts, for neighbours only ever make one worse."""
    behind, backend_port = started(backend, upstream=0)
    subjects = {"backend alone": (behind, backend_port)}
    for name, proxy in PROXIES.items():
        subjects[name] = started(proxy, upstream=backend_port)
    rows: dict[str, Row] = {name: {} for name in subjects}
    for _round in range(rounds):
        for count in connections:
            for name, (process, port) in subjects.items():
                slice_ = uvloop.run(measure(process, port, count, seconds))
                best = rows[name].get(count)
                rows[name][count] = slice_ if best is None or slice_.rate > best.rate else best
    for process, _port in subjects.values():
        process.terminate()
        process.join()
    return rows


def show(rows: dict[str, Row], connections: list[int]) -> None:
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, uvicorn "
        f"{version('uvicorn')}, uvloop {version('uvloop')}, aiohttp {version('aiohttp')}"
    )
    alone, bare = rows["backend alone"], rows["bare aiohttp proxy"]
    for count in connections:
        print(f"\n{f'{count} connections':30} requests/s   p50 ms   p99 ms   added p50   CPU us/request   x bare proxy")
        for name, row in rows.items():
            one = row[count]
            added, ratio = one.p50_ms - alone[count].p50_ms, one.rate / bare[count].rate
            print(
                f"{name:30}{one.rate:11.0f}{one.p50_ms:9.3f}{one.p99_ms:9.3f}{added:12.3f}{one.cpu_us:17.0f}{ratio:15.2f}"
            )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=float, default=2.0)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--connections", default="1,32,128")
    given = options.parse_args()
    connections = [int(count) for count in given.connections.split(",")]
    show(run(given.seconds, connections, given.rounds), connections)


if __name__ == "__main__":
    main()
