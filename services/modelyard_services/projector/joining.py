"""Chunks of a followed log joined while the consumer is busy, then cut into slices it can take in one go.

Invariant: a slice consists of whole batches, and together the slices are the log, in order and without a hole.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final

from modelyard_services.effects.log.contract import Stored

SLICE_EVENTS_MAX: Final = 2_000
"""In one transaction or burst: throughput gains nothing beyond it, and others get their turn on the loop."""

SLICE_BYTES_MAX: Final = 4 * 1024 * 1024
"""The same for large events; one decision alone may be larger."""

LINGER_SECONDS: Final = 0.01
"""How long the first event of a slice waits for company: a commit costs about 2 ms of disk, and the lag we promise is
100 ms."""


async def slices(following: AsyncGenerator[list[Stored], None]) -> AsyncGenerator[list[Stored], None]:
    """What `following` gives, in slices of whole batches; fails as it does, after all that came before."""
    upcoming = _upcoming(following)
    try:
        while True:
            _heed_cancellation()
            joined = list(await upcoming)
            upcoming = _upcoming(following)
            upcoming = await _join(joined, upcoming, following)
            for one in cut(joined):
                yield one
    finally:
        upcoming.cancel()
        await asyncio.wait({upcoming})
        await following.aclose()


def _heed_cancellation() -> None:
    """Raise the cancellation that a request lost while the consumer had its turn.

    Until Python 3.12, `asyncio.wait_for`, on which nats-py's requests stand, swallows one that comes together with the
    answer; the consumer would then wait here for ever.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def cut(events: Sequence[Stored]) -> Iterator[list[Stored]]:
    """`events` in slices of whole batches."""
    part: list[Stored] = []
    size = 0
    for one in events:
        part.append(one)
        size += len(one.body)
        if one.batch_end and (len(part) >= SLICE_EVENTS_MAX or size >= SLICE_BYTES_MAX):
            yield part
            part, size = [], 0
    if part:
        yield part


Upcoming = asyncio.Task[list[Stored]]


async def _join(joined: list[Stored], upcoming: Upcoming, following: AsyncGenerator[list[Stored], None]) -> Upcoming:
    """Add to `joined` what comes within the linger; a failure stays in the task that is returned."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + LINGER_SECONDS
    while len(joined) < SLICE_EVENTS_MAX and (left := deadline - loop.time()) > 0:
        done, _pending = await asyncio.wait({upcoming}, timeout=left)
        if not done or upcoming.exception() is not None:
            break
        joined += upcoming.result()
        upcoming = _upcoming(following)
    return upcoming


def _upcoming(following: AsyncGenerator[list[Stored], None]) -> Upcoming:
    async def take() -> list[Stored]:
        return await anext(following)

    return asyncio.create_task(take(), name="next-chunk")
