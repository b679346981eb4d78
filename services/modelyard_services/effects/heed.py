"""Waiting on nats-py without losing a cancellation.

Python 3.11's `asyncio.wait_for`, on which nats-py builds its waits, returns the result and forgets a cancellation that
comes in the same step of the loop. A task that loops over such waits then never ends, nor does what waits for it.
Invariant: a cancellation that arrives during a wait ends that wait, whatever else arrived with it.
"""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Found = TypeVar("Found")


async def heed(waiting: Awaitable[Found]) -> Found:
    """What `waiting` comes to, unless the task was cancelled meanwhile."""
    task = asyncio.current_task()
    before = 0 if task is None else task.cancelling()
    found = await waiting
    if task is not None and task.cancelling() > before:
        raise asyncio.CancelledError
    return found
