"""Who runs on behalf of a data directory, written down so that the next start can end what a crash left over.

Invariant: one owner per state directory at a time (a file lock says so), and no signal ever goes to a process that
merely inherited a recorded pid: a life is named by its pid *and* the instant it began.
"""

import contextlib
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from typing import Self

import msgspec
import psutil

from modelyard_services.effects.embedded.errors import ChildFailedError, DataDirectoryInUseError
from modelyard_services.effects.embedded.private import private_directory, read_private, write_private

LEFTOVER_SECONDS_MAX = 5.0
"""How long a left-over may take to obey before it is killed: an immediate PostgreSQL shutdown takes well under one."""

KILL_SECONDS_MAX = 5.0
"""How long the kernel may take over a SIGKILL; longer means uninterruptible disk sleep, which people must look at."""

_POLL_SECONDS = 0.02


class Life(msgspec.Struct, frozen=True):
    """One run of one child: `pid` alone is reused by the kernel, together with `began` it is unique."""

    name: str
    pid: int
    began: str
    death_signal: int


def began(pid: int) -> str | None:
    """When the process behind `pid` began, in a form that only the same process repeats; None if it is dead."""
    if sys.platform != "linux":
        try:
            return repr(psutil.Process(pid).create_time())
        except psutil.NoSuchProcess:
            return None
    try:
        # The name in field 2 may hold spaces and parentheses; what follows its last `)` starts with field 3, the state.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, ticks_since_boot = fields[0], fields[19]
    if state in "ZX":
        return None
    # Ticks alone would repeat after a reboot; wall-clock times would move when the clock is set.
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}:{ticks_since_boot}"


def is_alive(life: Life) -> bool:
    return began(life.pid) == life.began


def lives_in(directory: Path) -> list[Life]:
    """The lives recorded there that go on; none if there is no such directory."""
    found = (read_private(file, Life) for file in sorted(directory.glob("*.json")))
    return [life for life in found if life is not None and is_alive(life)]


def is_held(directory: Path) -> bool:
    """Whether an owner of the records lives. An owner that starts in this very instant would be refused once."""
    try:
        lock = os.open(directory / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who look at once don't see each other.
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


class Lives:
    """The records of one state directory, held exclusively between `hold` and `release`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock: int | None = None

    def hold(self) -> Self:
        """Take the directory for this process, and end whatever an owner that crashed left running.

        Raises:
            DataDirectoryInUseError: its owner is alive.
        """
        private_directory(self._directory)
        lock = os.open(self._directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise DataDirectoryInUseError(
                f"{self._directory.parent} is in use by another modelyard; stop it, or use another --data-dir",
                field="data_dir",
                value=str(self._directory.parent),
            ) from error
        self._lock = lock
        self._end_leftovers()
        return self

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def record(self, life: Life) -> None:
        write_private(self._file(life.name), msgspec.json.encode(life))

    def forget(self, name: str) -> None:
        self._file(name).unlink(missing_ok=True)

    def _file(self, name: str) -> Path:
        return self._directory / f"{name}.json"

    def _end_leftovers(self) -> None:
        for file in sorted(self._directory.glob("*.json")):
            life = read_private(file, Life)
            if life is not None:
                end(life)
            file.unlink(missing_ok=True)


def end(life: Life) -> None:
    """End the process of `life` if it still runs, by its own signal first, by SIGKILL in the end.

    Raises:
        ChildFailedError: not even SIGKILL ended it.
    """
    steps = ((life.death_signal, LEFTOVER_SECONDS_MAX), (signal.SIGKILL, KILL_SECONDS_MAX))
    for number, seconds in steps:
        if not is_alive(life):
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(life.pid, number)
        if _gone_within(life, seconds):
            return
    raise ChildFailedError(
        f"{life.name} (pid {life.pid}) survives SIGKILL; see its state in `ps` before starting again"
    )


def _gone_within(life: Life, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(life):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True
