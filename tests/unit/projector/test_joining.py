"""Slices of the log: whole batches, in order, none lost, joined while the consumer is busy."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from modelyard_services.effects.log.contract import Stored
from modelyard_services.projector.joining import SLICE_BYTES_MAX, SLICE_EVENTS_MAX, cut, slices


def event(sequence: int, *, end: bool = True, size: int = 10) -> Stored:
    return Stored(sequence, 0, "modelyard.log.fleet", f"e-{sequence}", b"x" * size, batch_end=end)


def sequences(events: Sequence[Stored]) -> list[int]:
    return [one.sequence for one in events]


async def following(*chunks: list[Stored] | float | Exception) -> AsyncGenerator[list[Stored], None]:
    """Chunks, pauses between them, a failure; then nothing more."""
    for one in chunks:
        if isinstance(one, Exception):
            raise one
        if isinstance(one, float):
            await asyncio.sleep(one)
        else:
            yield one
    await asyncio.Event().wait()


def test_a_slice_ends_where_a_batch_ends_however_long_that_is() -> None:
    long = [event(sequence, end=sequence % (SLICE_EVENTS_MAX + 500) == 0) for sequence in range(1, 6_001)]
    parts = list(cut(long))
    assert [part[-1].sequence for part in parts] == [2_500, 5_000, 6_000]
    assert [sequence for part in parts for sequence in sequences(part)] == list(range(1, 6_001))


def test_large_events_make_short_slices() -> None:
    large = [event(sequence, size=SLICE_BYTES_MAX // 2) for sequence in range(1, 6)]
    assert list(map(sequences, cut(large))) == [[1, 2], [3, 4], [5]]


async def test_chunks_that_come_together_make_one_slice() -> None:
    together = slices(following([event(1)], [event(2), event(3)], 0.1, [event(4)]))
    assert sequences(await anext(together)) == [1, 2, 3]
    assert sequences(await anext(together)) == [4]
    await together.aclose()


async def test_a_failure_comes_after_all_that_came_before_it() -> None:
    failing = slices(following([event(1)], [event(2)], ValueError("gap")))
    assert sequences(await anext(failing)) == [1, 2]
    with pytest.raises(ValueError, match="gap"):
        await anext(failing)


async def test_a_cancellation_that_the_consumer_lost_is_heeded_at_the_next_slice() -> None:
    """Before Python 3.12 `asyncio.wait_for` loses one that comes together with its answer."""
    reached = asyncio.Event()

    async def consume() -> None:
        async for _one in slices(following([event(1)])):
            reached.set()
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                continue

    consumer = asyncio.create_task(consume())
    await reached.wait()
    consumer.cancel()
    async with asyncio.timeout(2):
        with pytest.raises(asyncio.CancelledError):
            await consumer
