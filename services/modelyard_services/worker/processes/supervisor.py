"""Starts, watches, adopts and stops the processes of one node, and tells facts about them.

    start ─▶ LoadStarted ─▶ Loaded ─▶ (ProbeFailed) ─▶ Crashed | Stopped
        └──────────┴──▶ LoadFailed

Invariant: every replica that was asked for ends in exactly one of LoadFailed, Crashed and Stopped, told only after
its last process has exited; nothing is restarted here, that is the reconciler's to decide (rule W5).
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec
import structlog

from modelyard_events.ids import ReplicaId
from modelyard_events.replica import ProcessExit
from modelyard_events.requests import Loaded, LoadFailed, LoadStarted, LogLine, ProbeFailed
from modelyard_events.telemetry import ReplicaReading
from modelyard_services.effects.health import Healthy, Outcome, Refused, describe, probe
from modelyard_services.effects.port_claims import Claims, claims_directory
from modelyard_services.policy.probing import misses_after
from modelyard_services.settings import LOG_LINES_MOST
from modelyard_services.worker.processes.handle import Handle, KeeperError, end_strays
from modelyard_services.worker.processes.keeper import TERMINATE_SECONDS
from modelyard_services.worker.processes.kept import Kept, ProcessFact, keeper_file, last_fact
from modelyard_services.worker.processes.keys import ProcessKey, process_key, reaches
from modelyard_services.worker.processes.launch import LaunchRefusedError, Order, Placeholders, order_of
from modelyard_services.worker.processes.logs import FOLLOW_SECONDS, LogFile, merged, stderr_tail
from modelyard_services.worker.processes.ports import Ports
from modelyard_services.worker.processes.running import ProcessesSettings, Running, StartRequest, ready_deadline
from modelyard_services.worker.processes.state import ExitFile, Record, StateDirectory, read_json

READY_POLL_SECONDS: Final = (0.05, 1.0)
"""The first and the longest wait between two looks: small backends are ready in a second, large ones in minutes."""

STOP_SPARE_SECONDS: Final = 10.0
"""Beyond the grace and SIGTERM's own limit: what the kernel may take to free the memory of a killed process."""


_log = structlog.get_logger(__name__)


class StillAliveError(Exception):
    """A process outlives SIGKILL. It stays listed as stopping and keeps its port; asking again waits again."""


class Processes:
    """Use as `async with Processes(…) as processes: await processes.recover()`; one for each state directory.

    Args:
        settings: where and within what limits processes run.
        on_fact: is told each fact once, in order, and when it happened by this machine's clock; must not block.
        is_idle: whether no request is in flight on a replica, as far as the node knows.
        vram_of: VRAM in bytes by GPU index that the given pids use; None where that can't be measured.
        devices_of: what CUDA and ROCm call the GPUs with the given indexes.
        environment: what backends inherit and secrets are taken from.
    """

    def __init__(
        self,
        settings: ProcessesSettings,
        *,
        on_fact: Callable[[ProcessFact, int], None],
        is_idle: Callable[[ReplicaId], bool] = lambda _: True,
        vram_of: Callable[[frozenset[int]], dict[int, int] | None] = lambda _: None,
        devices_of: Callable[[tuple[int, ...]], tuple[str, ...]] = lambda gpus: tuple(map(str, gpus)),
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._on_fact = on_fact
        self._is_idle = is_idle
        self._vram_of = vram_of
        self._devices_of = devices_of
        self._environment = environment
        self._kept: dict[ReplicaId, Kept] = {}
        self._ports = Ports(
            settings.ports,
            host=settings.host,
            quarantine_seconds=settings.figures.port_quarantine_seconds,
            claims=Claims(claims_directory()),
        )
        self._launching = asyncio.Lock()

    async def __aenter__(self) -> Self:
        self._state = StateDirectory(self._settings.state_dir)
        self._tasks = asyncio.TaskGroup()
        await self._tasks.__aenter__()
        self._supervisors: dict[ReplicaId, asyncio.Task[None]] = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._settings.at_worker_end != "keep":
                await self.end_all()
        finally:
            for task in self._supervisors.values():
                task.cancel()
            ours = kind is None or issubclass(kind, asyncio.CancelledError)  # the caller's own error stays as it is
            try:
                await self._tasks.__aexit__(*((kind, error, trace) if ours else (None, None, None)))
            finally:
                for kept in self._kept.values():
                    kept.handle.let_go()
                self._ports.close()
                self._state.close()

    def state_secret(self) -> str:
        """Proves to the registrar that this worker is the one that was here before (rule N3)."""
        return self._state.secret()

    async def recover(self) -> tuple[Running, ...]:
        """Adopt what still lives from an earlier worker, and tell how the rest ended (rule W4).

        Raises:
            KeeperError: something lives that can't be identified; better no worker than a second one of each.
        """
        for directory, record in list(self._state.records()):
            handle = await Handle.find(directory)
            if record is None:
                await self._end_unknown(directory, handle)
            elif handle is None:
                await self._bury(record, directory)
            else:
                self._ports.hold(record.port)
                kept = Kept(record, directory, handle, keeper_file(directory))
                self._take_up(kept)
                if record.ready:
                    # Its worker may have been killed before anybody heard; told twice it changes nothing.
                    await self._tell_loaded(kept)
        return self.running()

    async def start(self, request: StartRequest) -> Running | None:
        """Start a process; None if that failed, which a LoadFailed tells. Starting what runs changes nothing."""
        async with self._launching:
            if request.replica in self._kept:
                return self._kept[request.replica].snapshot(self._settings)
            try:
                kept = await self._launch(request)
            except (LaunchRefusedError, KeeperError, OSError) as error:
                self._tell(LoadFailed(replica=request.replica, detail=str(error)))
                return None
        if kept.failure is not None:
            await kept.finished.wait()
            return None
        return kept.snapshot(self._settings)

    async def stop(self, replica: ReplicaId) -> None:
        """Ask, wait, terminate, kill; returns once the last process has exited (trap X22). None there: nothing to do.

        Raises:
            StillAliveError: something outlives SIGKILL.
        """
        async with self._launching:
            kept = self._kept.get(replica)
        if kept is None:
            return
        kept.stopping = True
        kept.handle.ask_to_stop()
        limit = kept.record.launch.stop_grace_seconds + TERMINATE_SECONDS + STOP_SPARE_SECONDS
        try:
            async with asyncio.timeout(limit):
                await kept.finished.wait()
        except TimeoutError as error:
            raise StillAliveError(f"{kept.key} ({replica}) still has processes {kept.handle.pids()}") from error

    async def end_all(self) -> None:
        """Stop everything at once.

        Raises:
            ExceptionGroup: of StillAliveError.
        """
        async with asyncio.TaskGroup() as stops:
            for replica in list(self._kept):
                stops.create_task(self.stop(replica))

    def running(self, asked: str | None = None) -> tuple[Running, ...]:
        """Every process that has not exited, or those that `asked` means: a key, a replica id, or a bare model name."""
        return tuple(
            kept.snapshot(self._settings) for kept in self._kept.values() if asked is None or kept.is_meant_by(asked)
        )

    async def probe(self, replica: ReplicaId) -> Outcome:
        """Ask a replica's process whether it is well. One that isn't there refuses, as its port would."""
        kept = self._kept.get(replica)
        return Refused() if kept is None else await self._probe(kept)

    async def measure(self, replica: ReplicaId) -> dict[int, int] | None:
        """Bytes that the replica uses of its GPUs, or of RAM where it has none. None is unknown, not zero."""
        kept = self._kept.get(replica)
        return None if kept is None else await asyncio.to_thread(kept.memory, self._vram_of)

    async def readings(self) -> tuple[ReplicaReading, ...]:
        """The inventory for heartbeats and registration (rules N2, N8)."""
        readings = []
        for running in self.running():
            memory = await self.measure(running.replica)
            readings.append(
                ReplicaReading(
                    replica=running.replica,
                    key=running.key,
                    revision=running.revision,
                    activity=running.activity,
                    process=running.process,
                    address=running.address,
                    memory=memory,
                )
            )
        return tuple(readings)

    async def logs(self, asked: str, *, lines: int = LOG_LINES_MOST) -> list[LogLine]:
        """The last lines of what `asked` means, in time order (rule W7)."""
        files = self._log_files(asked)
        try:
            return await self._last_of(files, lines)
        finally:
            for file in files.values():
                file.close()

    async def follow(self, asked: str, *, lines: int = LOG_LINES_MOST) -> AsyncGenerator[list[LogLine], None]:
        """The last lines, then what comes, in time order within each slice; ends once no process of it is left."""
        files = self._log_files(asked)
        try:
            yield await self._last_of(files, lines)
            alive = True
            while alive:
                alive = bool(self.running(asked))  # asked before reading, so that last words are read too
                files = self._log_files(asked, known=files)
                slice_ = merged([line for file in files.values() for line in file.new()])
                if slice_:
                    yield slice_
                    alive = True
                await asyncio.sleep(FOLLOW_SECONDS)
        finally:
            for file in files.values():
                file.close()

    async def _last_of(self, files: Mapping[ReplicaId, LogFile], lines: int) -> list[LogLine]:
        kept = min(lines, self._settings.figures.log_lines)
        found = [await asyncio.to_thread(file.last, kept) for file in files.values()]
        return merged(line for group in found for line in group)[-kept:]

    async def _launch(self, request: StartRequest) -> Kept:
        key = process_key(request.model, request.replica_index)
        if self.running(key):
            raise LaunchRefusedError(f"{key} still runs as another replica; it has to end first")
        port = self._ports.take()
        try:
            order = order_of(
                request.launch,
                Placeholders(port, self._settings.host, request.model, request.replica, self._devices_of(request.gpus)),
                inherited=self._environment,
                allowed=self._settings.allow_commands,
                dies_with=self._settings.dies_with(),
            )
            order = msgspec.structs.replace(order, log_lines=self._settings.figures.log_lines)
            record = Record(**msgspec.structs.asdict(request), port=port, incarnation=self._settings.incarnation)
            directory = self._state.write(record)
            handle = await self._spawn(directory, order)
        except (LaunchRefusedError, OSError):
            self._ports.put_back(port)
            raise
        file = keeper_file(directory)
        kept = Kept(record, directory, handle, file)
        if file.problem is None:
            self._tell(LoadStarted(replica=record.replica, process=kept.process))
        else:
            kept.failure = f"{order.executable!r} can't be executed: {os.strerror(file.problem)}"
        self._take_up(kept)
        return kept

    async def _spawn(self, directory: Path, order: Order) -> Handle:
        try:
            return await Handle.spawn(directory, order)
        except OSError:  # the kernel refused; after a KeeperError one may live, which the next worker will find
            self._state.archive(directory)
            raise

    def _take_up(self, kept: Kept) -> None:
        self._kept[kept.replica] = kept
        self._supervisors[kept.replica] = self._tasks.create_task(self._supervise(kept))

    async def _supervise(self, kept: Kept) -> None:
        watch = self._tasks.create_task(self._watch(kept))
        try:
            await kept.handle.ended()
        finally:
            watch.cancel()
        kept.handle.let_go()
        await self._bury(kept.record, kept.directory, kept)
        del self._kept[kept.replica], self._supervisors[kept.replica]
        kept.finished.set()

    async def _watch(self, kept: Kept) -> None:
        if kept.record.ready or await self._becomes_ready(kept):
            await self._probe_in_background(kept)

    async def _becomes_ready(self, kept: Kept) -> bool:
        limit = kept.record.launch.ready_timeout_seconds
        # By the wall, since an adopted process started under another loop.
        deadline = ready_deadline(kept.record.launch, started_at=kept.process.started_at)
        pause, pause_max = READY_POLL_SECONDS
        outcome = await self._probe(kept)
        while not isinstance(outcome, Healthy):
            if time.time() >= deadline:
                kept.failure = f"not ready within {limit:g} s: {describe(outcome)}"
                kept.handle.ask_to_stop()
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, pause_max)
            outcome = await self._probe(kept)
        if kept.stopping:
            return False
        kept.record = msgspec.structs.replace(kept.record, ready=True)
        try:
            self._state.write(kept.record)
        except OSError as error:  # a full disk; the next worker will only find out anew that it is ready
            _log.warning("can't record that a replica is ready", replica=kept.replica, error=str(error))
        await self._tell_loaded(kept)
        return True

    async def _tell_loaded(self, kept: Kept) -> None:
        memory = await self.measure(kept.replica)
        if not kept.stopping and kept.replica in self._kept:
            address = self._settings.address(kept.process.port)
            self._tell(Loaded(replica=kept.replica, address=address, memory=memory))

    def _tell(self, fact: ProcessFact) -> None:
        self._on_fact(fact, time.time_ns())

    async def _probe_in_background(self, kept: Kept) -> None:
        misses = 0
        while True:
            await asyncio.sleep(self._settings.figures.probe_interval_seconds)
            idle = self._is_idle(kept.replica)
            outcome = await self._probe(kept)
            idle = idle and self._is_idle(kept.replica)
            misses = misses_after(misses, missed=not isinstance(outcome, Healthy), idle=idle)
            if misses == self._settings.figures.probe_misses and not kept.stopping:
                self._tell(ProbeFailed(replica=kept.replica, detail=describe(outcome)))

    async def _probe(self, kept: Kept) -> Outcome:
        host, seconds = self._settings.probe_host, self._settings.figures.probe_seconds
        return await probe(kept.record.launch.health, host=host, port=kept.process.port, seconds=seconds)

    async def _bury(self, record: Record, directory: Path, kept: Kept | None = None) -> None:
        """Nothing of it is alive, or is once this returns: tell how it ended, free its port, keep its log."""
        end = read_json(directory / "exit.json", ExitFile)
        if end is None:
            await end_strays(directory)
            end = ExitFile(exit_code=None, signal=None, asked=False, ended_at=time.time())
        tail = await asyncio.to_thread(stderr_tail, directory, self._settings.figures.stderr_lines)
        told = ProcessExit(exit_code=end.exit_code, signal=end.signal, stderr_tail=tail)
        self._ports.release(record.port, exited_seconds_ago=time.time() - end.ended_at)
        self._on_fact(last_fact(record, end, told, kept), round(end.ended_at * 1e9))
        self._state.archive(directory)

    async def _end_unknown(self, directory: Path, handle: Handle | None) -> None:
        """What no record names can't be adopted, and must not live on as nobody's (trap X20): it ends."""
        _log.error("a replica's record can't be read; what it kept is ended", directory=str(directory))
        if handle is not None:
            handle.ask_to_stop()
            await handle.ended()
            handle.let_go()
        await end_strays(directory)
        self._state.drop(directory)

    def _log_files(self, asked: str, known: Mapping[ReplicaId, LogFile] | None = None) -> dict[ReplicaId, LogFile]:
        """The logs that `asked` means: the known ones, what runs, or the last that ran where nothing does."""
        files = dict(known or {})
        for kept in self._kept.values():
            if kept.is_meant_by(asked) and kept.replica not in files:
                files[kept.replica] = LogFile(kept.directory, kept.replica, kept.key)
        if not files:
            seen: set[ProcessKey] = set()
            for directory, record in self._state.ended():
                key = process_key(record.model, record.replica_index)
                if (asked == record.replica or reaches(asked, key)) and key not in seen:
                    seen.add(key)
                    files[record.replica] = LogFile(directory, record.replica, key)
        return files
