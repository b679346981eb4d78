"""Keeps one backend: its parent, its log writer and the one who ends it.

A keeper is a process of its own (`python -I -S keeper.py DIRECTORY`, standard library only), so that a backend
outlives a worker that is upgraded or killed without losing a log line or its exit code (rules W4, W7).
It reads one order, a JSON line on stdin, and then goes

    start → copy output → [stop: ask the main process → terminate all → kill all] → nobody left → exit.json

As a subreaper it inherits every descendant, also those that left the process group; as long as it has a child,
something lives. It holds `lock` for life, so that a worker knows the living from the dead without trusting pids.

Invariant: when a keeper ends by itself, nothing that it started is alive; when it is killed, the kernel kills
the main process, and the worker ends the rest by the mark in their environment.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ORDER_FD: Final = 0
SETTLED_FD: Final = 1
LOCK_FD: Final = 3

ORDER_BYTES_MAX: Final = 8 * 2**20
"""An order is a command line and an environment; the kernel takes 6 MiB of them at the very most."""

LINE_BYTES_MAX: Final = 4096
"""Longer lines are cut into pieces: a page, as much as a pipe writes in one go."""

LOG_LINES: Final = 1_000
"""Kept of each backend where the order doesn't say (rule W7)."""

LOG_BYTES_PER_LINE: Final = 5 * 1024
"""As many of the longest lines as are to be kept fit in one file, so `log` and `log.1` hold at least these (rule W7),
and a replica never takes more than twice that."""

TERMINATE_SECONDS: Final = 2.0
"""Between SIGTERM and SIGKILL for those whose main process is gone or used its grace up."""

KILL_AGAIN_SECONDS: Final = 0.2
"""A process that forks while it is being killed leaves a child that the last look at /proc missed."""

PR_SET_PDEATHSIG: Final = 1
PR_SET_CHILD_SUBREAPER: Final = 36

RUNNING, ASKED, TERMINATED, KILLED = range(4)


class Log:
    """Lines with time and stream, in `log`, the older ones in `log.1`. A full disk costs lines, never the backend."""

    def __init__(self, directory: Path, lines: int) -> None:
        self._path = directory / "log"
        self._bytes_max = lines * LOG_BYTES_PER_LINE
        self._lost = 0
        self._open()

    def write(self, stream: bytes, lines: list[bytes]) -> None:
        stamp = b"%d %s " % (time.time_ns(), stream)
        data = b"".join(stamp + line + b"\n" for line in lines)
        if self._lost:
            data = b"%d e modelyard: %d log lines were lost: no space\n" % (time.time_ns(), self._lost) + data
        try:
            self._rotate()
            self._size += os.write(self._file, data)
            self._lost = 0
        except OSError:  # counted, and told as soon as the disk takes a line again
            self._lost += len(lines)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._size = os.fstat(self._file).st_size

    def _rotate(self) -> None:
        if self._size >= self._bytes_max:
            self._path.rename(self._path.with_name("log.1"))
            full = self._file
            self._open()
            os.close(full)


class Stream:
    """One output pipe of the backend, cut into lines."""

    def __init__(self, name: bytes) -> None:
        self.name = name
        self._rest = b""
        self.read_fd, self.write_fd = os.pipe()
        os.set_blocking(self.read_fd, False)

    def read(self) -> int | None:
        """How many bytes came: 0 at the end, None if there are none for now."""
        try:
            chunk = os.read(self.read_fd, 65_536)
        except BlockingIOError:
            return None
        self._rest += chunk
        return len(chunk)

    def take(self) -> list[bytes]:
        """The lines that became complete, and what is too long to wait for its end."""
        *lines, self._rest = self._rest.split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            lines.append(self._rest)
            self._rest = b""
        return [piece for line in lines for piece in pieces(line)]

    def finish(self) -> list[bytes]:
        """What came without a line end."""
        rest, self._rest = self._rest, b""
        return list(pieces(rest)) if rest else []


def pieces(line: bytes) -> Iterator[bytes]:
    """`line` as a terminal would leave it (a progress bar rewrites itself), in bounded pieces."""
    shown = line.rstrip(b"\r").rpartition(b"\r")[2]
    for start in range(0, max(len(shown), 1), LINE_BYTES_MAX):
        yield shown[start : start + LINE_BYTES_MAX]


class Keeper:
    def __init__(self, directory: Path, order: dict[str, Any]) -> None:
        self._directory = directory
        self._order = order
        self._log = Log(directory, lines_of(order))
        self._phase = RUNNING
        self._deadline: float | None = None
        self._status: int | None = None
        self._alone = False
        self._asked = False
        self._streams = {stream.read_fd: stream for stream in (Stream(b"o"), Stream(b"e"))}
        self._wakeup = wakeup_pipe()
        self._guardian = guardian_of(order)

    def start(self) -> int | None:
        """Start the main process; the errno if that can't be done."""
        out, err = self._streams.values()
        self._main, problem = spawn(self._order, out.write_fd, err.write_fd)
        for stream in self._streams.values():
            os.close(stream.write_fd)
        write_json(
            self._directory / "keeper.json",
            {
                "keeper": {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid())},
                "process": {"pid": self._main, "start_ticks": start_ticks(self._main)},
                "started_at": time.time(),
                "problem": problem,
            },
        )
        return problem

    def keep(self) -> None:
        """Until nothing that was started is alive."""
        poll = select.poll()
        for fd in (*self._streams, self._wakeup):
            poll.register(fd, select.POLLIN)
        if self._guardian is not None:
            poll.register(self._guardian, select.POLLIN)
        while not self._alone:
            for fd, _ in poll.poll(self._wait_ms()):
                if fd == self._wakeup:
                    self._heed(os.read(fd, 512))
                elif fd == self._guardian:  # gone, and the backend was to go with it
                    poll.unregister(fd)
                    self._ask()
                elif self._copy(fd) == 0:
                    poll.unregister(fd)
            self._reap()
            self._escalate()
        for fd, stream in self._streams.items():
            while self._copy(fd):
                pass
            self._write(stream.name, stream.finish())

    def write_exit(self) -> None:
        code = None if self._status is None else os.waitstatus_to_exitcode(self._status)
        killed = code is not None and code < 0
        write_json(
            self._directory / "exit.json",
            {
                "exit_code": None if killed else code,
                "signal": signal.Signals(-code).name if code is not None and killed else None,
                "asked": self._asked,
                "ended_at": time.time(),
            },
        )

    def _copy(self, fd: int) -> int | None:
        count = self._streams[fd].read()
        self._write(self._streams[fd].name, self._streams[fd].take())
        return count

    def _write(self, name: bytes, lines: list[bytes]) -> None:
        if lines:
            self._log.write(name, lines)

    def _heed(self, signals: bytes) -> None:
        if signal.SIGTERM in signals:
            self._ask()

    def _ask(self) -> None:
        self._asked = True
        if self._phase == RUNNING:
            self._enter(ASKED, float(self._order["stop_grace_seconds"]))
            os.kill(self._main, signal.SIGTERM)  # not reaped yet, so the pid is still its own

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._main:
                    self._status = status
                    self._end_the_rest()
        self._alone = True

    def _end_the_rest(self) -> None:
        """Helpers of a dead main process hold its memory; they get what is left of the grace."""
        if self._phase in {RUNNING, ASKED}:
            left = 0.0 if self._deadline is None else self._deadline - time.monotonic()
            self._enter(TERMINATED, max(left, TERMINATE_SECONDS))
            signal_all(signal.SIGTERM)

    def _escalate(self) -> None:
        if self._alone or self._deadline is None or time.monotonic() < self._deadline:
            return
        if self._phase == ASKED:
            self._enter(TERMINATED, TERMINATE_SECONDS)
            signal_all(signal.SIGTERM)
        else:
            self._enter(KILLED, KILL_AGAIN_SECONDS)
            signal_all(signal.SIGKILL)

    def _enter(self, phase: int, seconds: float) -> None:
        self._phase = phase
        self._deadline = time.monotonic() + seconds

    def _wait_ms(self) -> int | None:
        if self._deadline is None:
            return None
        return max(0, int((self._deadline - time.monotonic()) * 1000) + 1)


def spawn(order: dict[str, Any], out: int, err: int) -> tuple[int, int | None]:
    """Fork (one thread lives here, so that is safe) and exec; the pid, and the errno if the exec failed."""
    report_read, report_write = os.pipe()  # closed by a successful exec
    keeper = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            become(order, keeper, (out, err))
        except OSError as error:
            os.write(report_write, str(error.errno).encode())
        finally:
            os._exit(127)
    os.close(report_write)
    report = os.read(report_read, 16)
    os.close(report_read)
    return pid, int(report) if report else None


def become(order: dict[str, Any], keeper: int, output: tuple[int, int]) -> None:
    """Turn this fork into the backend: its own session, no input, output to the pipes, gone with its keeper."""
    os.setsid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != keeper:  # it died before the line above
        os._exit(127)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in zip((null, *output), range(3), strict=True):
        os.dup2(source, target)
    if order["working_directory"] is not None:
        os.chdir(order["working_directory"])
    os.execve(order["executable"], order["command"], order["environment"])  # noqa: S606 - no shell is the point


def signal_all(number: signal.Signals) -> None:
    for pid in descendants():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def descendants() -> list[int]:
    """Every living process below this one."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 - names are all that is needed, of thousands
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                children.setdefault(int(stat_fields(int(entry))[1]), []).append(int(entry))
    found = list(children.get(os.getpid(), ()))
    for pid in found:  # grows while it is walked
        found.extend(children.get(pid, ()))
    return found


def stat_fields(pid: int) -> list[str]:
    """`/proc/PID/stat` from the state on; the name before it may hold blanks and brackets."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def start_ticks(pid: int) -> int:
    """When `pid` started, in clock ticks since boot: with the pid, one process and no other."""
    return int(stat_fields(pid)[19])


def prctl(option: int, argument: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def lines_of(order: dict[str, Any]) -> int:
    """Lines of the backend's output to keep; a worker of an earlier version doesn't say."""
    return int(order.get("log_lines", LOG_LINES))


def guardian_of(order: dict[str, Any]) -> int | None:
    """A pidfd of whom the backend is to die with, readable once that has ended; None if it outlives everybody.

    Whoever has ended already is watched as nobody: a pipe that is at its end says the same.
    """
    # A worker of the version before orders without: an upgrade replaces this file before it replaces the worker.
    guardian = order.get("dies_with")
    if guardian is None:
        return None
    pid = int(guardian["pid"])
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        if start_ticks(pid) == guardian["start_ticks"]:
            return pidfd
        os.close(pidfd)
    at_end, write_fd = os.pipe()
    os.close(write_fd)
    return at_end


def wakeup_pipe() -> int:
    """The fd on which arriving signals can be read by number; SIGHUP and SIGINT are for others."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return read_fd


def write_json(path: Path, content: dict[str, Any]) -> None:
    """All of it or nothing, whoever reads meanwhile."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(content))
    new.replace(path)


def read_order() -> dict[str, Any] | None:
    """One JSON line; None if the worker died before it was whole, so that nothing starts half told."""
    order = b""
    while not order.endswith(b"\n"):
        chunk = os.read(ORDER_FD, 65_536)
        if not chunk or len(order) > ORDER_BYTES_MAX:
            return None
        order += chunk
    decoded: dict[str, Any] = json.loads(order)
    return decoded


def main() -> None:
    os.umask(0o077)
    os.set_inheritable(LOCK_FD, False)  # the backend must not hold the lock beyond its keeper's life
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    order = read_order()
    if order is None:
        return
    keeper = Keeper(Path(sys.argv[1]), order)
    keeper.start()
    os.close(SETTLED_FD)  # tells the worker that keeper.json is there
    keeper.keep()
    keeper.write_exit()


if __name__ == "__main__":
    main()
