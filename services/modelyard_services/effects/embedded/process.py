"""One child process: what it is, and one life of it from launch to end.

Lifecycle: launched → ready → (stopped by us | ended by itself). It is bound to no event loop: exits are polled, so a
synchronous fixture, uvloop and asyncio can all hold the same process.
Invariant: after `stop` neither the process nor, where it had to be killed, its session is alive.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec

from modelyard_services.effects.embedded import launch
from modelyard_services.effects.embedded.errors import ChildFailedError
from modelyard_services.effects.embedded.lives import KILL_SECONDS_MAX, Life, began

POLL_SECONDS = 0.02
"""How often exits and readiness are looked at: short beside the 300 ms of the fastest start, and a few system calls."""

LOG_BYTES_MAX = 16 * 1024 * 1024
"""A log longer than this at a start becomes `<log>.1`, which replaces the one before: two files bound the disk."""

LOG_TAIL_BYTES = 4096
"""How much of its log the error of a failed child shows."""


class StopStep(msgspec.Struct, frozen=True):
    """Send `signal`, then give the process `seconds` to end."""

    signal: signal.Signals
    seconds: float


class RunAs(msgspec.Struct, frozen=True):
    """An unprivileged user for a child of root, and the one capability it keeps (None: none)."""

    uid: int
    gid: int
    capability: int | None


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """A process that we keep running.

    Attributes:
        name: unique in its tree; names its state file.
        argv: program and arguments, no shell.
        ready: asked again and again until true; may not take long, may not raise for "not yet".
        log_file: gets stdout and stderr.
        environment: all of it; None passes ours on.
        directory: where it starts; None is where we are.
        before: run before each launch (clears what a crash left in the way).
        start_seconds_max: from launch to ready; longer fails.
        stop: what to try in turn; SIGKILL to its whole session follows by itself.
        death_signal: what the kernel sends it when we die without a word.
        run_as: whom it runs as if not as us.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[], Awaitable[bool]]
    log_file: Path
    environment: Mapping[str, str] | None = None
    directory: Path | None = None
    before: Callable[[], None] | None = None
    start_seconds_max: float = 20.0
    stop: tuple[StopStep, ...] = (StopStep(signal.SIGTERM, 10.0),)
    death_signal: signal.Signals = signal.SIGKILL
    run_as: RunAs | None = None


def launcher(argv: tuple[str, ...], *, death_signal: signal.Signals, run_as: RunAs | None) -> list[str]:
    """`argv` behind our launcher, which ties it to the life of this process.

    Linux ties to the *thread* that forks: launch from one that lives as long as the process, best the main one.
    """
    user = RunAs(uid=-1, gid=-1, capability=None) if run_as is None else run_as
    capability = -1 if user.capability is None else user.capability
    numbers = (os.getpid(), int(death_signal), user.uid, user.gid, capability)
    return [sys.executable, "-I", "-S", str(launch.__file__), *map(str, numbers), *argv]


class LiveProcess:
    """One life of `child`."""

    def __init__(self, child: Child) -> None:
        self.child = child
        if child.before is not None:
            child.before()
        _bound_log(child.log_file)
        self._log_from = child.log_file.stat().st_size if child.log_file.exists() else 0
        with child.log_file.open("ab") as log:
            self._popen = subprocess.Popen(  # noqa: S603 - argv comes from our own code, never from a user's text
                launcher(child.argv, death_signal=child.death_signal, run_as=child.run_as),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=None if child.environment is None else dict(child.environment),
                cwd=child.directory,
            )
        self.pid = self._popen.pid

    @property
    def life(self) -> Life | None:
        """How to find it again from another process; None if it has already ended."""
        instant = began(self.pid)
        if instant is None:
            return None
        return Life(name=self.child.name, pid=self.pid, began=instant, death_signal=self.child.death_signal)

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._popen.poll()

    async def ready(self) -> None:
        """Wait until it is ready.

        Raises:
            ChildFailedError: it ended, or took longer than it may.
        """
        deadline = time.monotonic() + self.child.start_seconds_max
        while not await self.child.ready():
            if self.exit_code is not None:
                raise self.failure(f"ended with {self.exit_code} before it was ready")
            if time.monotonic() >= deadline:
                raise self.failure(f"was not ready within {self.child.start_seconds_max:g} s")
            await asyncio.sleep(POLL_SECONDS)

    async def exited(self, within: float | None = None) -> bool:
        """Wait for the end, at most `within` seconds; whether it has come."""
        deadline = None if within is None else time.monotonic() + within
        while self.exit_code is None:
            if deadline is not None and time.monotonic() >= deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def stop(self) -> None:
        """End it: its own steps in turn, then SIGKILL to its session."""
        try:
            for step in self.child.stop:
                if self.exit_code is not None:
                    return
                self._popen.send_signal(step.signal)
                if await self.exited(within=step.seconds):
                    return
        finally:
            # Also on cancellation: nothing may outlive us.
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and its session, now; does nothing once it has ended."""
        if self.exit_code is None:
            # The launcher leads its own session only after its first instants.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._popen.kill()
            self._popen.wait(timeout=KILL_SECONDS_MAX)

    def failure(self, what: str) -> ChildFailedError:
        tail = _tail(self.child.log_file, since=self._log_from) or "(nothing)"
        return ChildFailedError(
            f"{self.child.name} {what}; its log {self.child.log_file} ends with:\n{tail}",
            field="child",
            value=self.child.name,
            extra={"exit_code": self.exit_code, "log_file": str(self.child.log_file)},
        )


def _bound_log(log_file: Path) -> None:
    if log_file.exists() and log_file.stat().st_size > LOG_BYTES_MAX:
        log_file.replace(log_file.with_name(f"{log_file.name}.1"))


def _tail(log_file: Path, *, since: int) -> str:
    """The last whole lines, of this life only: what another one ended with is no reason of this one's."""
    with log_file.open("rb") as file:
        begin = max(since, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES)
        file.seek(begin)
        text = file.read().decode(errors="replace")
    return text if begin == since else text.partition("\n")[2]
