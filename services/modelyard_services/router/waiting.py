"""Requests that wait for a replica: in order per model, bounded, woken when something changed for them (T5, T7).

```
place ─▶ asleep ─▶ woken ─▶ tries ─▶ steps out with a replica
           ▲                  └ in vain: asleep again, at its old place
```

Invariant: whoever came first is woken first, also after a wake-up in vain, and nobody who comes passes those who
wait; a request that gives up leaves the queue, and a wake-up that it took with it goes to the next.
"""

import asyncio
import contextlib
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from modelyard_events.ids import ModelName
from modelyard_services.errors import OverloadedError
from modelyard_services.settings import QUEUE_MAX

RETRY_SECONDS: Final = 5.0
"""When to ask again after an overload: a queue of that length takes seconds to shrink."""


class Place:
    """One request's place in the queue of a model. `waiter` is there while it sleeps."""

    __slots__ = ("model", "ticket", "waiter")

    def __init__(self, model: ModelName, ticket: int) -> None:
        self.model = model
        self.ticket = ticket
        self.waiter: asyncio.Future[None] | None = None

    def wake(self) -> bool:
        """Whether it slept, and is woken now."""
        if self.waiter is None or self.waiter.done():
            return False
        self.waiter.set_result(None)
        return True


class Queues:
    """One queue per model. In line are those who want a replica and have none, asleep or just awake."""

    def __init__(self, *, queue_max: int = QUEUE_MAX) -> None:
        self._queue_max = queue_max
        self._lines: dict[ModelName, list[Place]] = {}
        self._tickets = 0

    def __contains__(self, model: ModelName) -> bool:
        return model in self._lines

    def lengths(self) -> Mapping[str, int]:
        return {model: len(line) for model, line in self._lines.items()}

    @contextlib.contextmanager
    def place(self, model: ModelName) -> Iterator[Place]:
        """The last place in the queue, given up at the end of the context.

        Raises:
            OverloadedError: the queue is full.
        """
        waiting = len(self._lines.get(model, ()))
        if waiting >= self._queue_max:
            raise OverloadedError(
                f"{waiting} requests wait for {model!r} already",
                retry_after_seconds=RETRY_SECONDS,
                extra={"queued": waiting},
            )
        self._tickets += 1
        place = Place(model, self._tickets)
        self.step_in(place)
        try:
            yield place
        finally:
            if self.step_out(place):
                self.wake_one(model)

    def step_in(self, place: Place) -> None:
        """Stand in line, at the place that the ticket says."""
        insort(self._lines.setdefault(place.model, []), place, key=_ticket)

    def step_out(self, place: Place) -> bool:
        """Leave the line. False if it stands there no more."""
        line = self._lines.get(place.model, [])
        index = bisect_left(line, place.ticket, key=_ticket)
        if index == len(line) or line[index] is not place:
            return False
        del line[index]
        if not line:
            del self._lines[place.model]
        return True

    def ahead(self, place: Place) -> int:
        """How many are in line before `place`."""
        return bisect_left(self._lines.get(place.model, []), place.ticket, key=_ticket)

    async def sleep(self, place: Place, *, seconds: float) -> None:
        """Wait for a wake-up, at most `seconds`.

        Raises:
            TimeoutError: nothing changed in time.
        """
        place.waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(seconds):
                await place.waiter
        finally:
            place.waiter = None

    def wake_one(self, model: ModelName, *, behind: int = 0) -> None:
        """Something is free for whoever waits longest, or longest `behind` a ticket."""
        line = self._lines.get(model, [])
        for index in range(bisect_left(line, behind, key=_ticket), len(line)):
            if line[index].wake():
                return

    def wake_first(self, models: Iterable[ModelName]) -> None:
        """Something is free for whoever waits longest for one of `models`."""
        for model in models:
            self.wake_one(model)

    def wake(self, models: Iterable[ModelName]) -> None:
        """Something changed for everyone who waits for one of `models`."""
        for model in models:
            for place in self._lines.get(model, ()):
                place.wake()

    def wake_all(self) -> None:
        self.wake(self._lines)


def _ticket(place: Place) -> int:
    return place.ticket
