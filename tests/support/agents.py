"""The real node agent against a real registrar on a real NATS server; the test plays operator and reconciler.

Invariant: nothing is left running: agents are stopped with their processes, whatever a test did to them.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

import msgspec

from modelyard_events.envelope import Actor, AnyEvent, Entry
from modelyard_events.fleet import FleetRegistrationTokenCreated
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.node import HOST_MEMORY
from modelyard_events.spec import LaunchSpec
from modelyard_projections.fleet import Fleet, Ready, ReplicaState
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import EmbeddedNats, embedded_nats
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.ending import begin_drain, request_stop
from modelyard_services.policy.tokens import digest_of
from modelyard_services.registrar.main import serving
from modelyard_services.registrar.settings import RegistrarSettings
from modelyard_services.settings import CalloutSettings, NatsSettings, ProcessSettings
from modelyard_services.worker.agent.main import serve
from modelyard_services.worker.agent.settings import WorkerSettings
from tests.support.backends import echo, free_range
from tests.support.given import GIB, a_model, a_placed_replica

N1 = NodeName("n1")
TOKEN = "join me"  # noqa: S105 - of a server that lives for one test
UNTIL_SECONDS = 90.0
"""A worker in a process of its own starts in two seconds; where everything else runs as well, in thirty."""


class Worker:
    """One run of an agent: stopped as by SIGTERM, or ended as it ends itself."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(serve(settings, self.stop))

    async def terminate(self, *, seconds: float = 25.0) -> None:
        self.stop.set()
        async with asyncio.timeout(seconds):
            await self.task

    async def end(self) -> None:
        self.stop.set()
        await asyncio.gather(self.task, return_exceptions=True)


class Server:
    """The server, which a test may end and begin again on its own files."""

    def __init__(self, server: EmbeddedNats, directory: Path) -> None:
        self._server = server
        self._directory = directory
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        await self.begin()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.end()

    async def begin(self) -> None:
        tree = await self._stack.enter_async_context(ProcessTree(self._directory / "run"))
        await tree.start(self._server.child)

    async def end(self) -> None:
        await self._stack.aclose()


class Yard:
    """The control plane's side, and the workers of the test."""

    def __init__(self, server: EmbeddedNats, nats: Server, runtime: Runtime, directory: Path) -> None:
        self.server = server
        self.nats = nats
        self.runtime = runtime
        self.directory = directory
        self._workers: list[Worker] = []

    @property
    def fleet(self) -> Fleet:
        return self.runtime.fleet

    def worker(self, *, state: str = "state", **changes: object) -> Worker:
        """An agent that runs; call it again with the same `state` for the next one in that directory."""
        settings = WorkerSettings(
            name=N1,
            nats_url=self.server.url,
            registration_token=TOKEN,
            state_dir=self.directory / state,
            vram=4 * GIB,
            max_replicas_per_model=2,
            ports=free_range(),
        )
        worker = Worker(msgspec.structs.replace(settings, **changes))
        self._workers.append(worker)
        return worker

    @contextlib.asynccontextmanager
    async def killable_worker(self, *, state: str = "state") -> AsyncIterator[asyncio.subprocess.Process]:
        """A worker in a process of its own, which leaves its replicas to the next one in that directory."""
        ports = free_range()
        options = {
            "--name": N1,
            "--nats-url": self.server.url,
            "--registration-token": TOKEN,
            "--state-dir": str(self.directory / state),
            "--vram": "4GiB",
            "--max-replicas-per-model": "2",
            "--port-range": f"{ports.first}-{ports.last}",
            "--at-end": "keep",
        }
        words = [word for option in options.items() for word in option]
        with (self.directory / "worker.log").open("wb") as log:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "modelyard_services", "worker", *words, stdout=log, stderr=log
            )
        try:
            yield worker
        finally:
            if worker.returncode is None:
                worker.kill()
            await worker.wait()

    async def decide(self, *events: AnyEvent, command: str | None = None) -> None:
        await self.commit(lambda _fleet: list(events), command=command)

    async def commit(self, decide: Callable[[Fleet], list[AnyEvent]], *, command: str | None = None) -> None:
        await self.runtime.journal.commit(self.runtime.envelope(Actor("operator", "test"), command=command), decide)

    async def place(self, replica: str = "r-1", launch: LaunchSpec | None = None, *, index: int = 0) -> None:
        """As the reconciler would; the command's id is `place-<replica>`."""
        placed = a_placed_replica(replica, node=N1, index=index, vram={HOST_MEMORY: GIB}, launch=launch or echo())
        await self.decide(*placed, command=f"place-{replica}")

    async def unload(self, replica: str) -> None:
        """As an operator would, and the reconciler once nothing holds it."""
        one = [ReplicaId(replica)]
        await self.commit(lambda fleet: begin_drain(fleet, one, reason="requested", deadline_seconds=60))
        await self.commit(lambda fleet: request_stop(fleet, one))

    async def until(self, holds: Callable[[Fleet], object], *, seconds: float = UNTIL_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while not holds(self.fleet):  # noqa: ASYNC110 - any state may be waited for
                await asyncio.sleep(0.02)

    async def ready(self, replica: str = "r-1") -> ReplicaState:
        await self.until(lambda fleet: isinstance(_phase(fleet, replica), Ready))
        return self.fleet.replicas[ReplicaId(replica)]

    async def address(self, replica: str = "r-1") -> str:
        """Where it answers, once it is ready."""
        phase = (await self.ready(replica)).phase
        assert isinstance(phase, Ready)
        return phase.address

    async def ended(self, replica: str = "r-1") -> None:
        await self.until(lambda fleet: ReplicaId(replica) not in fleet.replicas)

    async def entries(self) -> list[Entry]:
        log = self.runtime.log
        assert log is not None
        stored = [await log.read(sequence) for sequence in range(1, self.fleet.sequence + 1)]
        return [msgspec.json.decode(message.body, type=Entry) for message in stored if message is not None]

    async def tags(self) -> list[str]:
        return [type(entry.event).__name__ for entry in await self.entries()]

    async def close(self) -> None:
        for worker in self._workers:
            await worker.end()


def _phase(fleet: Fleet, replica: str) -> object:
    state = fleet.replicas.get(ReplicaId(replica))
    return None if state is None else state.phase


@contextlib.asynccontextmanager
async def a_yard(directory: Path, *, auto_approve: bool = True) -> AsyncIterator[Yard]:
    """An empty fleet that defines model `m`; workers register, and are approved unless told otherwise."""
    server = embedded_nats(directory)
    async with Server(server, directory) as nats:
        settings = RegistrarSettings(
            ProcessSettings("registrar", NatsSettings(server.control_url)),
            auto_approve=auto_approve,
            callout=CalloutSettings(server.callout_url, server.keys.issuer_seed),
        )
        async with serving(settings) as runtime:
            await runtime.wait_ready(timeout_seconds=10)
            yard = Yard(server, nats, runtime, directory)
            await yard.decide(FleetRegistrationTokenCreated(name="default", digest=digest_of(TOKEN)), *a_model())
            try:
                yield yard
            finally:
                await yard.close()
