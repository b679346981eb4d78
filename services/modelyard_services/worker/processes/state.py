"""The state directory: what this node runs, written so that the next worker finds it (rules N3, W4).

    lock                       held by the one worker that may use the directory
    secret                     proves to the registrar that a restart is a restart
    replicas/r-<id>/           a replica whose end has not been told yet
        record.json            written before its keeper is started, so that no process can be unknown
        keeper.json exit.json  the keeper's: who lives there, how it ended
        lock log log.1
    ended/r-<id>/              the last few that have ended, for their logs

Invariant: a record is whole or absent, and moving it to `ended` is the one mark that its end was told.
"""

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote

import msgspec

from modelyard_events.ids import IncarnationId, ReplicaId, Revision
from modelyard_events.spec import LaunchSpec
from modelyard_services.errors import ConflictError

ENDED_MAX: Final = 32
"""Ended replicas whose logs are kept: enough to look into a crash loop; at most 320 MiB."""

SECRET_BYTES: Final = 32

Content = TypeVar("Content")


class Record(msgspec.Struct, frozen=True):
    """One replica's process as its worker ordered it. Secrets stand here by reference only."""

    replica: ReplicaId
    model: str
    replica_index: int
    revision: Revision
    launch: LaunchSpec
    gpus: tuple[int, ...]
    port: int
    incarnation: IncarnationId
    ready: bool = False


class Identity(msgspec.Struct, frozen=True):
    """One process and no other since boot."""

    pid: int
    start_ticks: int


class KeeperFile(msgspec.Struct, frozen=True):
    """`keeper.json`. `problem` is the errno of an exec that failed."""

    keeper: Identity
    process: Identity
    started_at: float
    problem: int | None


class ExitFile(msgspec.Struct, frozen=True):
    """`exit.json`; `asked` when a worker had asked it to stop."""

    exit_code: int | None
    signal: str | None
    asked: bool
    ended_at: float


class StateDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path = path.resolve()  # so that marks and locks mean the same whatever link led here
        self._replicas = path / "replicas"
        self._ended = path / "ended"
        for directory in (path, self._replicas, self._ended):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_file(path / "lock")
        if self._lock is None:
            raise ConflictError(
                f"another worker uses the state directory {path}; give each its own --state-dir", field="state_dir"
            )

    def close(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def secret(self) -> str:
        """The directory's secret, made at its first use."""
        path = self.path / "secret"
        if not path.exists():
            write_whole(path, secrets.token_hex(SECRET_BYTES).encode())
        return path.read_text()

    def directory_of(self, replica: ReplicaId) -> Path:
        return self._replicas / _name(replica)

    def write(self, record: Record) -> Path:
        """Record what is about to be started, or has become ready; the directory it lives in."""
        directory = self.directory_of(record.replica)
        directory.mkdir(mode=0o700, exist_ok=True)
        write_whole(directory / "record.json", msgspec.json.encode(record))
        return directory

    def records(self) -> Iterator[tuple[Path, Record | None]]:
        """Every replica whose end was not told; None where the record can't be read, and a process may live.

        A directory without a record never had one.
        """
        for directory in sorted(self._replicas.iterdir()):
            path = directory / "record.json"
            if path.exists():
                yield directory, read_json(path, Record)
            else:
                shutil.rmtree(directory)

    def ended(self) -> Iterator[tuple[Path, Record]]:
        """The last few that ended, newest first."""
        for directory in sorted(self._ended.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
            record = read_json(directory / "record.json", Record)
            if record is not None:
                yield directory, record

    def drop(self, directory: Path) -> None:
        """Nothing lives there any more, and nobody can say what it was."""
        shutil.rmtree(directory)

    def archive(self, directory: Path) -> None:
        """The end was told; keep the log of the newest few."""
        target = self._ended / directory.name
        shutil.rmtree(target, ignore_errors=True)
        directory.rename(target)
        os.utime(target)
        for old, _ in list(self.ended())[ENDED_MAX:]:
            shutil.rmtree(old)


def lock_file(path: Path) -> int | None:
    """An fd that holds the lock until the last copy of it is closed; None if another holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def write_whole(path: Path, content: bytes) -> None:
    """All of it or nothing, also after a power failure; readable by its owner alone."""
    new = path.with_name(f"{path.name}.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(fd)
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def read_json(path: Path, kind: type[Content]) -> Content | None:
    """The file's content; None if it isn't there or can't be read: cut short, damaged, or of another version."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _name(replica: ReplicaId) -> str:
    return "r-" + quote(replica, safe="")
