"""Requests that wait for a replica: in order per model, bounded, woken when something changed for them (T5, T7).

Invariant: whoever came first is woken first, also after a wake-up in vain; a request that gives up leaves the
queue, and a wake-up that it took with it goes to the next.
"""

import asyncio
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import Final

from modelyard_events.ids import ModelName
from modelyard_services.errors import OverloadedError

QUEUE_MAX: Final = 1_024
"""Per model and router (rule T7)."""

RETRY_SECONDS: Final = 5.0
"""When to ask again after an overload: a queue of that length takes seconds to shrink."""

Waiter = asyncio.Future[None]
Queue = list[tuple[int, Waiter]]


class Queues:
    """One queue per model; a place in it is a ticket."""

    def __init__(self, *, queue_max: int = QUEUE_MAX) -> None:
        self._queue_max = queue_max
        self._queues: dict[ModelName, Queue] = {}
        self._tickets = 0

    def __contains__(self, model: ModelName) -> bool:
        return model in self._queues

    def lengths(self) -> Mapping[str, int]:
        return {model: len(queue) for model, queue in self._queues.items()}

    def ticket(self, model: ModelName) -> int:
        """The last place in the queue.

        Raises:
            OverloadedError: the queue is full.
        """
        if len(self._queues.get(model, ())) >= self._queue_max:
            raise OverloadedError(
                f"{self._queue_max} requests wait for {model!r} already", retry_after_seconds=RETRY_SECONDS
            )
        self._tickets += 1
        return self._tickets

    def position(self, model: ModelName, ticket: int) -> int:
        """How many wait ahead of `ticket`."""
        return bisect_left(self._queues.get(model, []), ticket, key=lambda waiting: waiting[0])

    async def wait(self, model: ModelName, ticket: int, *, seconds: float) -> None:
        """Wait for a wake-up, at most `seconds`.

        Raises:
            TimeoutError: nothing changed in time.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        insort(self._queues.setdefault(model, []), (ticket, waiter), key=lambda waiting: waiting[0])
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except BaseException:
            self._leave(model, (ticket, waiter))
            raise

    def wake_one(self, model: ModelName) -> None:
        """Something became free for whoever waits longest."""
        queue = self._queues.get(model)
        while queue:
            _ticket, waiter = queue.pop(0)
            if not waiter.done():
                waiter.set_result(None)
                break
        self._forget_empty(model)

    def wake(self, models: Iterable[ModelName]) -> None:
        """Something changed for everyone who waits for one of `models`."""
        for model in models:
            for _ticket, waiter in self._queues.pop(model, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def wake_all(self) -> None:
        self.wake(list(self._queues))

    def _leave(self, model: ModelName, waiting: tuple[int, Waiter]) -> None:
        queue = self._queues.get(model, [])
        waiter = waiting[1]
        if waiting in queue:
            queue.remove(waiting)
            self._forget_empty(model)
        elif not waiter.cancelled():
            self.wake_one(model)

    def _forget_empty(self, model: ModelName) -> None:
        if not self._queues.get(model, True):
            del self._queues[model]
