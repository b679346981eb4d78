"""Real NATS servers for tests: one alone (R1), or three that form a cluster (R3), on free ports of loopback.

Use the fixtures `nats_r1` and `nats_r3` (one of each per session), `nats_alone` (a fresh one), or the classes.
Invariant: they run with the durability and the flags of production; a killed node starts again on its own files
and port. Nothing is left running or on disk.
"""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest
from nats.aio.client import Client

from modelyard_events.subjects import EVENTS_STREAM, LEASES_STREAM, LOG_STREAM, TELEMETRY_STREAM
from modelyard_services.effects.embedded.binaries import nats_server
from modelyard_services.effects.log.endpoint import NatsEndpoint, connect

START_SECONDS_MAX: Final = 15.0
"""A server listens within a second; a cluster elects its first leader within about five."""

_STREAM_NOT_FOUND: Final = 10059

# A server sweeps up after an account's last stream while it already answers, and the sweep takes the folder from under
# the next stream. With one that stays there is no last one.
_KEEPER: Final[dict[str, object]] = {"name": "KEEPER", "subjects": ["keeper"], "storage": "file"}

_COMMON: Final = """
feature_flags { js_ack_fc_v2: false }
jetstream {
  store_dir: "%(store)s"
  sync_interval: always
  max_memory_store: 256MiB
  max_file_store: 1TiB
  limits { batch { max_inflight_per_stream: 500, max_inflight_total: 1000, max_msgs: 1000, timeout: "10s" } }
}
"""


class Node:
    """One server process, which can be killed and started again."""

    def __init__(self, directory: Path, name: str, *, port: int, extra: str = "") -> None:
        self.name = name
        self.port = port
        self._directory = directory / name
        self._directory.mkdir(parents=True)
        self._config = self._directory / "nats.conf"
        common = _COMMON % {"store": self._directory / "store"}
        self._config.write_text(f'server_name: {name}\nlisten: "127.0.0.1:{port}"\n{common}\n{extra}\n')
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        with (self._directory / "server.log").open("ab") as log:
            self._process = subprocess.Popen([nats_server(), "--config", self._config], stdout=log, stderr=log)  # noqa: S603
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _listens(self.port):
            assert self.running, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def kill(self) -> None:
        """As by a crash: no farewell, nothing flushed."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """As by a partition: connections stay open, nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    async def forgets(self, stream: str) -> None:
        """Wait until a deleted stream's files are gone: the server answers earlier, and can't create it until then."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while self.running and any(self._directory.glob(f"store/jetstream/*/streams/{stream}")):
            assert time.monotonic() < deadline, self.log()
            await asyncio.sleep(0.01)

    def log(self) -> str:
        return (self._directory / "server.log").read_text()[-4_000:]

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait(START_SECONDS_MAX)
            self._process = None


class Servers:
    """One server or a cluster; `replicas` is what streams on it should have."""

    def __init__(self, directory: Path, size: int, *, extra: str = "") -> None:
        ports = _free_ports(2 * size)
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[size:])
        self.replicas = size
        self.nodes = [
            Node(
                directory,
                f"n{index}",
                port=ports[index],
                extra=extra + (_cluster(ports[size + index], routes) if size > 1 else ""),
            )
            for index in range(size)
        ]

    @property
    def endpoint(self) -> NatsEndpoint:
        return NatsEndpoint(urls=tuple(node.url for node in self.nodes))

    @property
    def url(self) -> str:
        return self.nodes[0].url

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        if self.replicas > 1:
            asyncio.run(self.wait_ready())

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def revive(self) -> None:
        """Start whatever is down."""
        for node in self.nodes:
            if not node.running:
                node.start()

    async def wait_ready(self) -> None:
        """Wait until JetStream answers and every node takes part."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if await self._ready():
                return
            await asyncio.sleep(0.05)
        raise AssertionError("\n".join(node.log() for node in self.nodes))

    async def leader(self, stream: str = LOG_STREAM) -> Node:
        """The node that leads `stream`, once there is one."""
        client = await connect(self.endpoint)
        try:
            deadline = time.monotonic() + START_SECONDS_MAX
            while time.monotonic() < deadline:
                name = (await _ask(client, f"STREAM.INFO.{stream}")).get("cluster", {}).get("leader")
                for node in self.nodes:
                    if node.name == name and node.running:
                        return node
                await asyncio.sleep(0.05)
        finally:
            await client.close()
        raise AssertionError(f"nobody leads {stream}")

    async def forget(self, *streams: str) -> None:
        """Delete modelyard's streams, so that the next test begins with an empty log."""
        client = await connect(self.endpoint)
        try:
            await _ask(client, f"STREAM.CREATE.{_KEEPER['name']}", _KEEPER | {"num_replicas": self.replicas})
            for stream in streams or (LOG_STREAM, EVENTS_STREAM, TELEMETRY_STREAM, LEASES_STREAM):
                await _deleted(client, stream)
        finally:
            await client.close()

    async def _ready(self) -> bool:
        client = await connect(self.endpoint)
        try:
            probe = {"name": "PROBE", "subjects": ["probe"], "storage": "memory", "num_replicas": len(self.nodes)}
            made = await _ask(client, "STREAM.CREATE.PROBE", probe)
            await _ask(client, "STREAM.DELETE.PROBE")
            return "error" not in made
        finally:
            await client.close()


@pytest.fixture(scope="session")
def nats_r1() -> Iterator[Servers]:
    """A server alone."""
    with started(1) as servers:
        yield servers


@pytest.fixture(scope="session")
def nats_r3() -> Iterator[Servers]:
    """A cluster of three."""
    with started(3) as servers:
        yield servers


@pytest.fixture
def nats_alone() -> Iterator[Servers]:
    """A server alone that this test may kill and restart."""
    with started(1) as servers:
        yield servers


@contextmanager
def started(size: int, *, extra: str = "") -> Iterator[Servers]:
    """Running servers; `extra` goes into the configuration of each. Not from within an event loop."""
    directory = Path(tempfile.mkdtemp(prefix="modelyard-nats-"))
    servers = Servers(directory, size, extra=extra)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
        shutil.rmtree(directory)


async def _deleted(client: Client, stream: str) -> None:
    """Ask until it is gone: an answer may be late on a busy machine, and the deletion under way still."""
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        answer = await _ask(client, f"STREAM.DELETE.{stream}")
        if answer.get("error", {}).get("err_code") == _STREAM_NOT_FOUND:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"{stream} is still there")


async def _ask(client: Client, subject: str, body: dict[str, object] | None = None) -> dict[str, dict[str, object]]:
    try:
        reply = await client.request(f"$JS.API.{subject}", json.dumps(body).encode() if body else b"", timeout=2)
    except Exception as error:  # noqa: BLE001  nobody leads yet: the same to a test as an error in the answer
        return {"error": {"description": repr(error)}}
    decoded: dict[str, dict[str, object]] = json.loads(reply.data)
    return decoded


def _cluster(port: int, routes: str) -> str:
    return f'cluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{routes}] }}'


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
