"""T7: the queue is bounded, in order, and loses no wake-up."""

import asyncio
import contextlib

import pytest

from modelyard_events.ids import ModelName
from modelyard_services.errors import OverloadedError
from modelyard_services.router.waiting import Queues

M = ModelName("m")


class Line:
    """Some who wait in one queue; `served` names them in the order in which they were."""

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self.served: list[int] = []

    async def join(self, *numbers: int) -> list[asyncio.Task[None]]:
        tasks = [asyncio.create_task(self._wait(number)) for number in numbers]
        await asyncio.sleep(0)
        return tasks

    async def _wait(self, number: int) -> None:
        with self._queues.place(M) as place:
            await self._queues.sleep(place, seconds=5)
            self._queues.step_out(place)
            self.served.append(number)


async def test_whoever_came_first_is_woken_first() -> None:
    queues = Queues()
    line = Line(queues)
    tasks = await line.join(1, 2, 3)
    for _ in tasks:
        queues.wake_one(M)
    await asyncio.gather(*tasks)
    assert line.served == [1, 2, 3]
    assert M not in queues


async def test_a_wake_up_in_vain_costs_nobody_their_place() -> None:
    queues = Queues()
    with queues.place(M) as first:
        (later,) = await Line(queues).join(2)
        for _ in range(3):
            sleeping = asyncio.create_task(queues.sleep(first, seconds=5))
            await asyncio.sleep(0)
            queues.wake_one(M)
            await sleeping
            assert queues.ahead(first) == 0
        assert not later.done()
    await later


async def test_one_who_steps_back_in_stands_where_they_stood() -> None:
    queues = Queues()
    with queues.place(M) as first, queues.place(M) as second:
        assert queues.step_out(first)
        assert not queues.step_out(first)
        assert queues.ahead(second) == 0
        queues.step_in(first)
        assert (queues.ahead(first), queues.ahead(second)) == (0, 1)


async def test_one_that_gives_up_passes_its_wake_up_on() -> None:
    queues = Queues()
    first, second = await Line(queues).join(1, 2)
    queues.wake_one(M)
    first.cancel()
    await asyncio.wait_for(second, 1)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_one_that_gives_up_leaves_the_queue() -> None:
    queues = Queues()
    (task,) = await Line(queues).join(1)
    assert queues.lengths() == {"m": 1}
    task.cancel()
    await asyncio.wait([task])
    assert M not in queues


async def test_a_full_queue_refuses_with_when_to_ask_again_also_while_everyone_is_just_awake() -> None:
    """Those who were woken and haven't been served yet still take their places."""
    queues = Queues(queue_max=1)
    (task,) = await Line(queues).join(1)
    queues.wake_all()
    with pytest.raises(OverloadedError) as refused, queues.place(M):
        pass
    assert refused.value.retry_after_seconds
    await task


async def test_waiting_ends_with_its_patience() -> None:
    queues = Queues()
    with contextlib.suppress(TimeoutError), queues.place(M) as place:
        await queues.sleep(place, seconds=0.01)
        pytest.fail("nobody woke it")
    assert M not in queues
