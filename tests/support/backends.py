"""Real processes under a real supervisor, for tests: launch specs, a recorder of facts, free port ranges."""

import asyncio
import itertools
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec
import psutil

from modelyard_events.ids import IncarnationId, ReplicaId, Revision
from modelyard_events.spec import Health, LaunchSpec, SecretRef
from modelyard_services.effects.port_claims import Claims, claims_directory, nobody_listens
from modelyard_services.worker.processes import (
    PortRange,
    Processes,
    ProcessesSettings,
    ProcessFact,
    StartRequest,
)
from modelyard_services.worker.processes.handle import MARK

FACT_SECONDS = 20.0
"""How long a test waits for a fact on a machine that is busy with other tests."""

PORTS_PER_SUPERVISOR = 8

Fact = TypeVar("Fact")

_offsets = itertools.count()


def free_range() -> PortRange:
    """A small range that nobody listens on or claims, below the ports that outgoing connections take."""
    while True:
        first = 21_000 + (os.getpid() * 97 + next(_offsets) * PORTS_PER_SUPERVISOR) % 11_000
        if all(map(_is_free, range(first, first + PORTS_PER_SUPERVISOR))):
            return PortRange(first, first + PORTS_PER_SUPERVISOR - 1)


def _is_free(port: int) -> bool:
    claims = Claims(claims_directory())
    if not nobody_listens("127.0.0.1", port) or not claims.claim(port):
        return False
    claims.give_back(port)
    return True


def echo(
    *options: str, environment: dict[str, str | SecretRef] | None = None, health: Health | None = None
) -> LaunchSpec:
    """A launch spec of the echo backend; tests don't want to wait for long."""
    command = (sys.executable, "-m", "modelyard_services.worker.backends.echo")
    return LaunchSpec(
        command=(*command, "--port", "{port}", "--host", "{host}", "--model", "{model}", *options),
        environment=environment or {},
        health=health or Health(http="/health"),
        stop_grace_seconds=5.0,
    )


def minilm() -> LaunchSpec:
    """A launch spec of the embedding backend with its real weights."""
    command = (sys.executable, "-m", "modelyard_services.worker.backends.minilm")
    return LaunchSpec(command=(*command, "--port", "{port}", "--host", "{host}", "--model", "{model}"))


def script(source: str, *, grace: float = 5.0, ready_timeout: float = 20.0) -> LaunchSpec:
    """A launch spec of a few lines of Python; `PORT` is its port. Nothing is imported but what it imports."""
    code = "import sys; PORT = int(sys.argv[1])\n" + textwrap.dedent(source)
    return LaunchSpec(
        command=(sys.executable, "-I", "-S", "-u", "-c", code, "{port}"),
        health=Health(http="/"),
        stop_grace_seconds=grace,
        ready_timeout_seconds=ready_timeout,
    )


SERVE = """
import http.server
class Ok(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", PORT), Ok).serve_forever()
"""
"""The end of a script that becomes ready."""


def request(replica: str, launch: LaunchSpec, *, model: str = "echo", replica_index: int = 0) -> StartRequest:
    return StartRequest(
        replica=ReplicaId(replica), model=model, replica_index=replica_index, revision=Revision("r1"), launch=launch
    )


class Told:
    """The facts in the order they were told, and a way to wait for the next of a kind."""

    def __init__(self) -> None:
        self.facts: list[ProcessFact] = []
        self.occurred_ns: list[int] = []
        self._changed = asyncio.Event()

    def __call__(self, fact: ProcessFact, occurred_ns: int) -> None:
        self.facts.append(fact)
        self.occurred_ns.append(occurred_ns)
        self._changed.set()

    def of(self, kind: type[Fact], replica: str | None = None) -> list[Fact]:
        return [fact for fact in self.facts if isinstance(fact, kind) and replica in {None, fact.replica}]

    async def wait(self, kind: type[Fact], replica: str | None = None, *, seconds: float = FACT_SECONDS) -> Fact:
        async with asyncio.timeout(seconds):
            while not (found := self.of(kind, replica)):
                self._changed.clear()
                await self._changed.wait()
        return found[0]


@asynccontextmanager
async def supervised(
    state_dir: Path, told: Told, *, is_idle: Callable[[ReplicaId], bool] = lambda _: True, **changes: object
) -> AsyncIterator[Processes]:
    """A supervisor on `state_dir`, recovered, that leaves nothing behind; `changes` are of its settings."""
    settings = ProcessesSettings(
        state_dir=state_dir, incarnation=IncarnationId("i1"), ports=free_range(), at_worker_end="end"
    )
    settings = msgspec.structs.replace(settings, **changes)
    async with Processes(settings, on_fact=told, is_idle=is_idle) as processes:
        await processes.recover()
        yield processes


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def marked(state_dir: Path) -> list[int]:
    """Every living process that was started from `state_dir`."""
    found = []
    for process in psutil.process_iter(["environ", "status"]):
        kept_in = (process.info["environ"] or {}).get(MARK, "")
        if Path(kept_in).is_relative_to(state_dir) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.pid)
    return found
