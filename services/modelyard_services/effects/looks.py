"""Looks at model files beside the loop, on disks that may hang for ever (rule R4, trap X20).

Invariant: nobody waits for a look for longer than its limit, not even the end of the process; what couldn't be looked
at in time is unknown, never nothing.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import structlog

from modelyard_services.effects.model_files import Read, read_files

LOOK_SECONDS_MAX: Final = 15.0
"""For all files of one command: a network disk that hangs must not hold it."""

LOOKS_MAX: Final = 16
"""At a time, each in a thread of its own: one on a disk that hangs keeps its thread for as long as that hangs."""

WAIT_SECONDS: Final = 0.05
"""Between attempts to begin, where as many as that are under way: mostly all of them hang, and this one gives up."""

Result = TypeVar("Result")

_places = threading.BoundedSemaphore(LOOKS_MAX)
_log = structlog.get_logger(__name__)


async def looked(
    work: Callable[[Read], Result], *, read: Read = read_files, seconds: float = LOOK_SECONDS_MAX
) -> Result:
    """`work` with files looked at beside the loop; as if none could be, where that takes too long."""
    try:
        async with asyncio.timeout(seconds):
            while not _places.acquire(blocking=False):  # noqa: ASYNC110 - freed by threads, of any loop
                await asyncio.sleep(WAIT_SECONDS)
            return await _beside(partial(work, read))
    except TimeoutError:
        _log.warning("looking at model files took too long", seconds=seconds)
        return work(lambda _names: [])


def _beside(work: Callable[[], Result]) -> "asyncio.Future[Result]":
    """What `work` comes to, in a thread that the end of the process doesn't wait for, as it would for an executor's."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if future.done():  # given up meanwhile
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # there is one where there is no error

    def run() -> None:
        result, problem = None, None
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - raised where it is awaited
            problem = error
        finally:
            _places.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
            loop.call_soon_threadsafe(settle, result, problem)

    try:
        threading.Thread(target=run, name="look at model files", daemon=True).start()
    except RuntimeError:  # the machine has no thread left
        _places.release()
        raise
    return future
