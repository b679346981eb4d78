"""T7: the queue is bounded, in order, and loses no wake-up."""

import asyncio

import pytest

from modelyard_events.ids import ModelName
from modelyard_services.errors import OverloadedError
from modelyard_services.router.waiting import Queues

M = ModelName("m")


async def begun(queues: Queues, *tickets: int) -> list[asyncio.Task[None]]:
    tasks = [asyncio.create_task(queues.wait(M, ticket, seconds=5)) for ticket in tickets]
    await asyncio.sleep(0)
    return tasks


async def test_whoever_came_first_is_woken_first_also_after_a_wake_up_in_vain() -> None:
    queues = Queues()
    first, second = queues.ticket(M), queues.ticket(M)
    (later,) = await begun(queues, second)
    (sooner,) = await begun(queues, first)
    assert queues.position(M, second) == 1
    queues.wake_one(M)
    await sooner
    assert not later.done()
    queues.wake_one(M)
    await later
    assert M not in queues


async def test_one_that_gives_up_passes_its_wake_up_on() -> None:
    queues = Queues()
    first, second = await begun(queues, queues.ticket(M), queues.ticket(M))
    queues.wake_one(M)
    first.cancel()
    await asyncio.wait_for(second, 1)
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_one_that_gives_up_leaves_the_queue() -> None:
    queues = Queues()
    (task,) = await begun(queues, queues.ticket(M))
    assert queues.lengths() == {"m": 1}
    task.cancel()
    await asyncio.wait([task])
    assert M not in queues


async def test_a_full_queue_refuses_with_when_to_ask_again() -> None:
    queues = Queues(queue_max=1)
    (task,) = await begun(queues, queues.ticket(M))
    with pytest.raises(OverloadedError) as refused:
        queues.ticket(M)
    assert refused.value.retry_after_seconds
    queues.wake_all()
    await task


async def test_waiting_ends_with_its_patience() -> None:
    queues = Queues()
    with pytest.raises(TimeoutError):
        await queues.wait(M, queues.ticket(M), seconds=0.01)
    assert M not in queues
