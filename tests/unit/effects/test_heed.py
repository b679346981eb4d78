"""A cancellation that comes with the answer is not lost, whatever asyncio makes of it."""

import asyncio

import pytest

from modelyard_services.effects.heed import heed


async def test_a_cancellation_in_the_very_step_of_the_answer_ends_the_wait() -> None:
    """W8: else a worker that is told to stop as an event arrives goes on for ever."""
    answer = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(heed(asyncio.wait_for(answer, 5)))
    await asyncio.sleep(0)
    answer.set_result("too late")
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_answer_in_time_is_the_answer() -> None:
    async def found() -> int:
        return 7

    assert await heed(found()) == 7


async def test_what_a_cancelled_task_does_to_clean_up_is_left_alone() -> None:
    """One wait is ended for each cancellation, not every later one."""
    said = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            said.append(await heed(asyncio.sleep(0, "goodbye")))

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert said == ["goodbye"]
