"""The worker's end of a keeper: start it, find it again, ask it to stop, know when it has ended.

Invariant: a keeper is held by pidfd, taken while its identity was proven; a recycled pid is never signalled.
"""

import asyncio
import contextlib
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Final

import msgspec
import psutil
import structlog

from modelyard_services.worker.processes import keeper
from modelyard_services.worker.processes.launch import Order
from modelyard_services.worker.processes.state import Identity, KeeperFile, lock_file, read_json

SETTLE_SECONDS: Final = 10.0
"""A keeper forks and execs within some 50 ms; ten seconds allow for a machine that swaps."""

STRAYS_PAUSE_SECONDS: Final = 0.1
STRAYS_ATTEMPTS_TOLD: Final = 100
"""SIGKILL works at once unless a process sits in the kernel; after ten seconds somebody should know."""

MARK: Final = "MODELYARD_KEPT_IN"
"""Set in every backend's environment to its own directory and inherited by all it starts: how strays are found, and
told from strangers and from another state directory's."""

_log = structlog.get_logger(__name__)


class KeeperError(Exception):
    """A keeper does not do what it must; the message says which and what was seen."""


class Handle:
    """A living or just ended keeper, our child or adopted. `file` is what it said of itself."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._loop.add_reader(pidfd, self._on_end)

    @classmethod
    async def spawn(cls, directory: Path, order: Order) -> "Handle":
        """A keeper under `order`; on return it has started the process, or failed to (see `keeper.json`).

        Raises:
            KeeperError: it didn't settle.
        """
        order = msgspec.structs.replace(order, environment=order.environment | {MARK: str(directory)})
        lock = lock_file(directory / "lock")
        if lock is None:
            raise KeeperError(f"{directory.name} already has a keeper")
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            theirs.callback(os.close, lock)
            order_fd, write_fd = _pipe(theirs, ours)
            read_fd, settled_fd = _pipe(ours, theirs)
            errors = os.open(directory / "keeper.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            theirs.callback(os.close, errors)
            pid = _posix_spawn(directory, (order_fd, settled_fd, errors, lock))
            ours.pop_all()
        handle = cls(pid, os.pidfd_open(pid))
        try:
            await handle._instruct(write_fd, read_fd, order)
        except BaseException:
            handle.ask_to_stop()
            handle.let_go()
            raise
        finally:
            os.close(read_fd)
        return handle

    @classmethod
    async def find(cls, directory: Path) -> "Handle | None":
        """The keeper that lives in `directory`; None if none does.

        Raises:
            KeeperError: one holds the lock and can't be identified.
        """
        file: KeeperFile | None = None
        for _ in range(int(SETTLE_SECONDS / 0.05)):
            # Looked at anew each time: a keeper may end while it is looked for, above all one whose worker was killed.
            lock = lock_file(directory / "lock")
            if lock is not None:
                os.close(lock)
                return None
            file = read_json(directory / "keeper.json", KeeperFile)
            pidfd = None if file is None else open_identity(file.keeper)
            if file is not None and pidfd is not None:
                return cls(file.keeper.pid, pidfd)
            await asyncio.sleep(0.05)  # the worker died between its order and the keeper's first word
        if file is None:
            raise KeeperError(f"{directory.name}: its keeper doesn't say who it is")
        raise KeeperError(f"{directory.name}: the lock is held, but not by process {file.keeper.pid}")

    async def ended(self) -> None:
        """Returns once the keeper, and so all it kept, has ended."""
        await self._ended.wait()

    def ask_to_stop(self) -> None:
        """The keeper asks, terminates and kills, each with its limit; asking again changes nothing."""
        if self._pidfd < 0:  # it has ended, and its supervisor is about to say so
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def pids(self) -> list[int]:
        """Every process that the keeper keeps."""
        try:
            return [child.pid for child in psutil.Process(self._pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def let_go(self) -> None:
        """Forget the keeper; it goes on."""
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    async def _instruct(self, order_fd: int, settled_fd: int, order: Order) -> None:
        try:
            await asyncio.to_thread(_write_all, order_fd, msgspec.json.encode(order) + b"\n")
        except BrokenPipeError as error:
            raise KeeperError("the keeper ended before it had its order; see keeper.err") from error
        finally:
            os.close(order_fd)
        settled = asyncio.Event()
        self._loop.add_reader(settled_fd, settled.set)  # the end of that pipe; nothing is ever written to it
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                await settled.wait()
        except TimeoutError as error:
            raise KeeperError(f"the keeper didn't start the process within {SETTLE_SECONDS:g} s") from error
        finally:
            self._loop.remove_reader(settled_fd)

    def _on_end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        with contextlib.suppress(ChildProcessError):  # an adopted keeper is another's child
            os.waitpid(self._pid, os.WNOHANG)
        self._ended.set()


def open_identity(identity: Identity) -> int | None:
    """A pidfd of exactly this process; None if it has ended, whoever has its pid now."""
    try:
        pidfd = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    try:
        same = keeper.start_ticks(identity.pid) == identity.start_ticks
    except (FileNotFoundError, ProcessLookupError):
        same = False
    if not same:
        os.close(pidfd)
        return None
    return pidfd


async def end_strays(directory: Path) -> None:
    """Kill whatever carries the mark of `directory`; returns once nothing of it is alive, however long that takes.

    For the one case that its keeper was killed.
    """
    for attempt in itertools.count(1):
        if not await asyncio.to_thread(_kill_marked, str(directory)):
            return
        if attempt % STRAYS_ATTEMPTS_TOLD == 0:
            _log.error("processes outlive SIGKILL; look at the GPU driver", directory=str(directory), attempts=attempt)
        await asyncio.sleep(STRAYS_PAUSE_SECONDS)


def _kill_marked(mark: str) -> int:
    count = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # gone, or another user's and so not ours
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                process.kill()  # psutil proves the identity before it signals
                count += 1
    return count


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends are closed by their owners."""
    read_fd, write_fd = os.pipe()
    reader.callback(os.close, read_fd)
    writer.callback(os.close, write_fd)
    return read_fd, write_fd


def _posix_spawn(directory: Path, fds: tuple[int, int, int, int]) -> int:
    """Not subprocess: its objects end or await their child, and a keeper must be free to outlive us."""
    command = [sys.executable, "-I", "-S", keeper.__file__, str(directory)]
    actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(fds)]
    environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    return os.posix_spawn(sys.executable, command, environment, file_actions=actions, setsid=True)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
