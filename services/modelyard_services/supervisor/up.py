"""`modelyard up`: servers, control plane and local workers as one process tree, until it is told to stop.

Invariant: what is started is ended, in reverse order, whatever ends us; data stays in the data directory, so the
next start goes on where this one stopped.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from modelyard_events.ids import NodeName
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.database import Database
from modelyard_services.effects.embedded.children import ChildReport, ProcessTree
from modelyard_services.effects.embedded.errors import ChildFailedError
from modelyard_services.effects.embedded.nats import embedded_nats
from modelyard_services.effects.embedded.ports import address, port_for
from modelyard_services.effects.embedded.postgres import embedded_postgres
from modelyard_services.effects.embedded.private import private_directory, read_private, usable, write_private
from modelyard_services.policy.access import is_loopback
from modelyard_services.reconciler.sources import VARIABLES, options_of, variables_of
from modelyard_services.settings import NatsSettings, ProcessSettings
from modelyard_services.supervisor.bootstrap import Secrets, admit, life_of, registered, secrets_of
from modelyard_services.supervisor.programs import program
from modelyard_services.supervisor.settings import Endpoints, UpSettings

Given = TypeVar("Given")

LOOPBACK: Final = "127.0.0.1"
WORKER_PREFIX: Final = "local"


class Running(msgspec.Struct, frozen=True):
    """An installation that serves: where it is, NATS in the control role (secret), and how its children are."""

    endpoints: Endpoints
    control_url: str
    report: Callable[[], tuple[ChildReport, ...]]


OnReady = Callable[[Running], None]


class Ports(msgspec.Struct, frozen=True):
    """Ports that stay over restarts, so that what was written down stays true."""

    http: int = 0
    grpc: int = 0
    registrar: int = 0
    reconciler: int = 0
    projector: int = 0


async def up(settings: UpSettings, stop: asyncio.Event, *, on_ready: OnReady) -> None:
    """Run everything until `stop` is set or a child can't be kept up; `on_ready` is told once all of it serves.

    Raises:
        DataDirectoryInUseError: another `up` runs on the data directory.
        DataDirectoryUnusableError: it can't be made or written.
        ChildFailedError: a child didn't start, or crashed again and again.
    """
    with usable(settings.data_dir):
        data_dir = private_directory(settings.data_dir.resolve())
    async with ProcessTree(data_dir / "run") as tree:
        with usable(data_dir):
            yard = _Yard(settings, data_dir, tree)
            endpoints = await yard.start(stop)
            write_private(data_dir / "endpoints.json", msgspec.json.format(msgspec.json.encode(endpoints)))
        on_ready(Running(endpoints, yard.control_url, tree.report))
        await _unless_failed(tree, stop.wait())


async def _unless_failed(tree: ProcessTree, waiting: Coroutine[None, None, object]) -> None:
    """Wait for `waiting`, or for the first child that can't be kept up.

    Raises:
        ChildFailedError: of that child.
    """
    goal = asyncio.create_task(waiting)
    failing = asyncio.create_task(tree.failure())
    try:
        done, _pending = await asyncio.wait({goal, failing}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        goal.cancel()
        failing.cancel()
    if failing in done:
        raise failing.result()
    goal.result()


class _Yard:
    """One start of everything, in order: servers, secrets, control plane, workers."""

    def __init__(self, settings: UpSettings, data_dir: Path, tree: ProcessTree) -> None:
        self._settings = settings
        self._data_dir = data_dir
        self._tree = tree
        self._logs = private_directory(data_dir / "logs")
        self._ports = _ports(settings, data_dir)
        # The reconciler alone is told what to apply; the others would say that they ignore it.
        self._environment = {key: value for key, value in os.environ.items() if key not in VARIABLES}

    @property
    def control_url(self) -> str:
        """NATS in the control role."""
        return self._environment["MODELYARD_NATS_URL"]

    @property
    def _reached_at(self) -> str:
        """Where this machine reaches what listens on the host that was asked for."""
        return LOOPBACK if self._settings.host in {"0.0.0.0", "::"} else self._settings.host  # noqa: S104 - compared

    async def start(self, stop: asyncio.Event) -> Endpoints:
        """Start all of it; returns once every worker of ours has registered in its new life, or at `stop`."""
        secrets = secrets_of(self._data_dir, beyond_loopback=not is_loopback(self._settings.host))
        database_url = await self._start_postgres()
        nats_url = await self._start_nats()
        self._environment["MODELYARD_DATABASE_URL"] = database_url
        # The first to connect declares the streams.
        nats = NatsSettings(self.control_url, telemetry_seconds=self._settings.nats_telemetry_seconds)
        async with open_runtime(ProcessSettings("up", nats)) as runtime:
            secrets = await admit(runtime, self._data_dir, secrets)
            endpoints = self._endpoints(secrets, nats_url, database_url)
            await self._start_control_plane()
            lives = {name: life_of(runtime.fleet, name) for name in map(_worker, range(self._settings.workers))}
            await self._start_workers(endpoints)
            await _unless_failed(self._tree, registered(runtime, lives, stop))
        return endpoints

    async def _start_nats(self) -> str:
        """Start the server or take the one given; the URL that workers use."""
        if self._settings.nats_url is not None:
            self._environment["MODELYARD_NATS_URL"] = self._settings.nats_url
            return self._settings.nats_url
        server = embedded_nats(self._data_dir, host=self._settings.host, port=self._settings.nats_port)
        await self._tree.start(server.child)
        self._environment["MODELYARD_NATS_URL"] = server.control_url
        self._environment["MODELYARD_NATS_CALLOUT_URL"] = server.callout_url
        self._environment["MODELYARD_NATS_ISSUER_SEED"] = server.keys.issuer_seed
        self._environment["MODELYARD_NATS_COPIER_URL"] = server.copier_url
        return server.url

    async def _start_postgres(self) -> str:
        if self._settings.database_url is not None:
            await _require(self._settings.database_url)
            return self._settings.database_url
        server = await asyncio.to_thread(embedded_postgres, self._data_dir)
        await self._tree.start(server.child)
        return server.url

    async def _start_control_plane(self) -> None:
        settings, ports = self._settings, self._ports
        approve = "--auto-approve" if settings.auto_approve else "--no-auto-approve"
        listen = ("--host", settings.host, "--port", str(ports.http), "--grpc-port", str(ports.grpc))
        starts = [self._start_program("api", (*listen, *settings.router.options), ports.http, healthy="/healthz")]
        for name, arguments, port in (
            ("registrar", (approve,), ports.registrar),
            ("reconciler", options_of(settings.configuration), ports.reconciler),
            ("projector", (), ports.projector),
        ):
            starts.append(self._start_program(name, (*arguments, "--status-port", str(port)), port))
        await _together(starts)

    async def _start_program(
        self, name: str, arguments: tuple[str, ...], port: int, *, healthy: str = "/readyz"
    ) -> None:
        host = self._reached_at if name == "api" else LOOPBACK
        own = variables_of(self._settings.configuration) if name == "reconciler" else {}
        child = program(
            name,
            (name, *arguments, "--log-level", self._settings.log_level),
            environment=self._environment | own,
            log_directory=self._logs,
            ready_url=f"http://{address(host, port)}{healthy}",
        )
        await self._tree.start(child)

    async def _start_workers(self, endpoints: Endpoints) -> None:
        await _together([self._start_worker(number, endpoints) for number in range(self._settings.workers)])

    async def _start_worker(self, number: int, endpoints: Endpoints) -> None:
        settings, name = self._settings, _worker(number)
        labels = _of(settings.worker_labels, number, {})
        vram = _of(settings.worker_vram, number, "")
        arguments = ["worker", "--name", name, "--state-dir", str(self._data_dir / "workers" / name)]
        arguments += ["--share", f"{number + 1}/{settings.workers}", "--log-level", settings.log_level]
        # A worker that is killed is started again and finds its replicas serving; none of them outlives us.
        arguments += ["--at-end", "end-with-parent"]
        arguments += [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        arguments += [*settings.worker.options, *(("--vram", vram) if vram else ())]
        arguments += [] if settings.worker_gpus is None else ["--gpus", settings.worker_gpus]
        own = {key: value for key, value in self._environment.items() if not key.startswith("MODELYARD_")}
        own |= {
            "MODELYARD_NATS_URL": endpoints.nats_url,
            "MODELYARD_REGISTRATION_TOKEN": endpoints.registration_token,
        }
        child = program(name, tuple(arguments), environment=own, log_directory=self._logs, ready_url=None)
        await self._tree.start(child)

    def _endpoints(self, secrets: Secrets, nats_url: str, database_url: str) -> Endpoints:
        url = f"http://{address(self._reached_at, self._ports.http)}"
        return Endpoints(
            api_url=url,
            gateway_url=f"{url}/v1",
            grpc_address=address(self._reached_at, self._ports.grpc),
            nats_url=nats_url,
            database_url=database_url,
            registration_token=secrets.registration_token,
            token=secrets.token,
        )


async def _together(starts: Sequence[Coroutine[None, None, None]]) -> None:
    """Run `starts` at once; the first that fails ends the others and is the reason for all.

    Raises:
        ChildFailedError: a child didn't start.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for start in starts:
                group.create_task(start)
    except* ChildFailedError as failed:
        failure = next(error for error in failed.exceptions if isinstance(error, ChildFailedError))
    else:
        return
    raise failure


async def _require(database_url: str) -> None:
    """Look once at the database that was given, before a minute is spent on starting what can't work without it.

    Raises:
        UnavailableError, InvalidRequestError: it can't be used; says why.
    """
    database = Database(database_url, process="up")
    try:
        await database.require()
    finally:
        await database.close()


def _worker(number: int) -> NodeName:
    return NodeName(f"{WORKER_PREFIX}-{number + 1}")


def _of(given: Sequence[Given], number: int, otherwise: Given) -> Given:
    """The `number`th of what was given, the last where fewer were."""
    return given[min(number, len(given) - 1)] if given else otherwise


def _ports(settings: UpSettings, data_dir: Path) -> Ports:
    file = data_dir / "ports.json"
    before = read_private(file, Ports) or Ports()
    taken: list[int] = []
    for host, wanted, previous in (
        (settings.host, settings.port, before.http),
        (settings.host, settings.grpc_port, before.grpc),
        (LOOPBACK, 0, before.registrar),
        (LOOPBACK, 0, before.reconciler),
        (LOOPBACK, 0, before.projector),
    ):
        taken.append(port_for(host, wanted=wanted, previous=previous))
    ports = Ports(*taken)
    if ports != before:
        write_private(file, msgspec.json.encode(ports))
    return ports
