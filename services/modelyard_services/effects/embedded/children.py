"""The process tree of `modelyard up`: start in order, restart what crashes, stop in reverse.

Lifecycle of a child: starting → running → (restarting → running)* → stopped | failed.
Invariant: every child that was launched is recorded before it is waited for and ended before `stop` returns, whatever
is cancelled or raised meanwhile; and a child that can't stay up fails the tree instead of spinning for ever.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from enum import StrEnum, unique
from pathlib import Path
from typing import Self

import msgspec

from modelyard_services.effects.embedded.errors import ChildFailedError
from modelyard_services.effects.embedded.lives import Lives
from modelyard_services.effects.embedded.process import Child, LiveProcess

CRASHES_MAX = 5
"""Crashes within `CRASH_WINDOW_SECONDS` that a child may have; one more and it is broken, not unlucky."""

CRASH_WINDOW_SECONDS = 60.0

BACKOFF_SECONDS_FIRST = 0.1
"""The first restart comes almost at once: a killed server should be back before clients give up."""

BACKOFF_SECONDS_MAX = 5.0

_Fail = Callable[[ChildFailedError], None]


@unique
class ChildState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPED = "stopped"
    FAILED = "failed"


class ChildReport(msgspec.Struct, frozen=True):
    name: str
    state: ChildState
    pid: int | None
    restarts: int
    exit_code: int | None


class ProcessTree:
    """Children in the order of their start. Use as `async with ProcessTree(data_dir / "run") as tree:`."""

    def __init__(self, state_directory: Path) -> None:
        self._lives = Lives(state_directory)
        self._kept: list[_Kept] = []
        self._failed: asyncio.Future[ChildFailedError] | None = None

    async def __aenter__(self) -> Self:
        self.hold()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def hold(self) -> None:
        """Own the state directory and end what a crashed owner left (blocks for as long as that takes).

        Raises:
            DataDirectoryInUseError: somebody else owns it.
        """
        self._lives.hold()

    async def start(self, child: Child) -> None:
        """Launch `child` and wait until it is ready; from then on it is restarted when it ends by itself.

        Raises:
            ChildFailedError: it never got ready; nothing of it is left.
        """
        kept = _Kept(child, self._lives)
        self._kept.append(kept)
        try:
            await kept.launch()
        except BaseException:
            await kept.stop(ChildState.FAILED)
            raise
        kept.watch(self._fail)

    async def failure(self) -> ChildFailedError:
        """Wait for the first child that can't be kept up, for whoever runs the tree to stop it."""
        self._failed = self._failed or asyncio.get_running_loop().create_future()
        broken = next((kept.failure for kept in self._kept if kept.failure is not None), None)
        return broken if broken is not None else await asyncio.shield(self._failed)

    def report(self) -> tuple[ChildReport, ...]:
        return tuple(kept.report() for kept in self._kept)

    async def stop(self) -> None:
        """End all children, the last started first, each within its own limits; then release the directory."""
        try:
            for kept in reversed(self._kept):
                await kept.stop(ChildState.STOPPED)
        finally:
            for kept in self._kept:
                kept.kill()
            self._lives.release()

    def _fail(self, error: ChildFailedError) -> None:
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)


class _Kept:
    """A child and its present life."""

    def __init__(self, child: Child, lives: Lives) -> None:
        self.failure: ChildFailedError | None = None
        self._child = child
        self._lives = lives
        self._process: LiveProcess | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._state = ChildState.STARTING
        self._restarts = 0
        self._crashes: deque[float] = deque(maxlen=CRASHES_MAX + 1)

    def report(self) -> ChildReport:
        process = self._process
        running = process is not None and process.exit_code is None
        return ChildReport(
            name=self._child.name,
            state=self._state,
            pid=process.pid if process is not None and running else None,
            restarts=self._restarts,
            exit_code=process.exit_code if process is not None else None,
        )

    async def launch(self) -> None:
        self._process = LiveProcess(self._child)
        life = self._process.life
        if life is not None:
            self._lives.record(life)
        await self._process.ready()
        self._state = ChildState.RUNNING

    def watch(self, fail: _Fail) -> None:
        self._watcher = asyncio.create_task(self._keep_up(fail), name=f"keep {self._child.name} up")
        self._watcher.add_done_callback(lambda watcher: self._watched(watcher, fail))

    async def stop(self, state: ChildState) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
            self._watcher = None
        if self._process is not None:
            await self._process.stop()
            self._lives.forget(self._child.name)
        self._state = state

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def _keep_up(self, fail: _Fail) -> None:
        while True:
            error = await self._ended()
            self._state = ChildState.RESTARTING
            while error is not None:
                if not self._may_restart():
                    self._state, self.failure = ChildState.FAILED, error
                    fail(error)
                    return
                await asyncio.sleep(self._backoff_seconds())
                error = await self._relaunched()

    def _watched(self, watcher: asyncio.Task[None], fail: _Fail) -> None:
        """A watcher that dies of a bug must not leave its child unwatched in silence."""
        if not watcher.cancelled() and (bug := watcher.exception()) is not None:
            self._state = ChildState.FAILED
            self.failure = ChildFailedError(f"keeping {self._child.name} up failed: {bug!r}")
            fail(self.failure)

    async def _ended(self) -> ChildFailedError | None:
        process = self._process
        if process is None:
            return None
        await process.exited()
        return process.failure(f"ended with {process.exit_code}")

    async def _relaunched(self) -> ChildFailedError | None:
        self._restarts += 1
        try:
            await self.launch()
        except ChildFailedError as error:
            self.kill()
            return error
        return None

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._crashes.append(now)
        return self._recent(now) <= CRASHES_MAX

    def _backoff_seconds(self) -> float:
        exponent = self._recent(time.monotonic()) - 1
        return min(BACKOFF_SECONDS_FIRST * 2.0**exponent, BACKOFF_SECONDS_MAX)

    def _recent(self, now: float) -> int:
        return sum(1 for instant in self._crashes if now - instant <= CRASH_WINDOW_SECONDS)
