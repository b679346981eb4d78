"""One replica's process as its supervisor knows it: its record, its keeper, and what was asked of it.

Invariant: which fact ends a replica follows from who wanted the end and whether it was ever ready, nothing else.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

import psutil

from modelyard_events.ids import ReplicaId
from modelyard_events.node import HOST_MEMORY
from modelyard_events.replica import Process, ProcessExit
from modelyard_events.requests import Crashed, Loaded, LoadFailed, LoadStarted, ProbeFailed, Stopped
from modelyard_events.telemetry import ReplicaActivity
from modelyard_services.worker.processes.handle import Handle, KeeperError
from modelyard_services.worker.processes.keys import process_key, reaches
from modelyard_services.worker.processes.running import ProcessesSettings, Running
from modelyard_services.worker.processes.state import ExitFile, KeeperFile, Record, read_json

ProcessFact = LoadStarted | Loaded | LoadFailed | Crashed | Stopped | ProbeFailed
LAST_WORDS_MAX: Final = 300
"""Characters of what a keeper that failed wrote: the exception's line, with room for a path in it."""

VramOf = Callable[[frozenset[int]], dict[int, int] | None]


class Kept:
    """`failure` is why a load failed before its process ended; `finished` is set after its last fact was told."""

    def __init__(self, record: Record, directory: Path, handle: Handle, file: KeeperFile) -> None:
        self.record = record
        self.directory = directory
        self.handle = handle
        self.process = Process(pid=file.process.pid, started_at=file.started_at, port=record.port)
        self.key = process_key(record.model, record.replica_index)
        self.stopping = False
        self.failure: str | None = None
        self.finished = asyncio.Event()

    @property
    def replica(self) -> ReplicaId:
        return self.record.replica

    @property
    def activity(self) -> ReplicaActivity:
        if self.stopping or self.failure is not None:
            return "stopping"
        return "ready" if self.record.ready else "starting"

    def is_meant_by(self, asked: str) -> bool:
        """`asked` is a key, a replica id, or a bare model name."""
        return asked == self.replica or reaches(asked, self.key)

    def snapshot(self, settings: ProcessesSettings) -> Running:
        record = self.record
        return Running(
            replica=record.replica,
            key=self.key,
            model=record.model,
            replica_index=record.replica_index,
            revision=record.revision,
            gpus=record.gpus,
            incarnation=record.incarnation,
            process=self.process,
            activity=self.activity,
            address=settings.address(record.port) if record.ready else None,
        )

    def memory(self, vram_of: VramOf) -> dict[int, int] | None:
        """Bytes by device; None is unknown. Memory that processes share is counted for each of them."""
        pids = self.handle.pids()
        if self.record.gpus:
            return vram_of(frozenset(pids))
        try:
            resident = [rss for pid in pids if (rss := _rss(pid)) is not None]
        except psutil.AccessDenied:  # of another user's now: a sum without it would be too little
            return None
        return {HOST_MEMORY: sum(resident)} if resident else None


def keeper_file(directory: Path) -> KeeperFile:
    file = read_json(directory / "keeper.json", KeeperFile)
    if file is None:
        raise KeeperError(f"the keeper ended at once: {_last_words(directory)}")
    return file


def _last_words(directory: Path) -> str:
    """The last line of what a keeper wrote before it failed: whoever looks can't always look into that directory."""
    told = directory / "keeper.err"
    lines = told.read_text(errors="replace").splitlines() if told.is_file() else []
    return lines[-1][:LAST_WORDS_MAX] if lines else f"it wrote nothing to {told}"


def last_fact(record: Record, end: ExitFile, told: ProcessExit, kept: Kept | None) -> ProcessFact:
    if kept is not None and kept.failure is not None and not kept.stopping:
        return LoadFailed(replica=record.replica, detail=kept.failure, exit=told)
    if end.asked or (kept is not None and kept.stopping):
        return Stopped(replica=record.replica, exit=told)
    if not record.ready:
        return LoadFailed(replica=record.replica, detail="exited before it was ready", exit=told)
    return Crashed(replica=record.replica, exit=told)


def _rss(pid: int) -> int | None:
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.NoSuchProcess:
        return None
