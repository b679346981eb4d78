"""When a process may call itself ready."""

import asyncio
from collections.abc import AsyncGenerator

from modelyard_events.node import NodeRegistered
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.contract import Stored
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory


class SlowLog(MemoryLog):
    """A log whose server takes its time to deliver: until `delivers` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.delivers = asyncio.Event()
        self.delivers.set()

    async def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        async for chunk in super().follow(after=after, subject=subject):
            await self.delivers.wait()
            yield chunk


async def test_a_process_that_lacks_one_event_of_its_start_is_not_ready() -> None:
    """X20: what it hasn't read is not what isn't there."""
    log, bus = SlowLog(), MemoryBus()
    async with in_memory("before", log, bus) as before:
        await before.wait_ready(timeout_seconds=1)
        await before.journal.commit(
            before.envelope(), lambda _fleet: [NodeRegistered(node="gpu-1", node_type="backend")]
        )
    log.delivers.clear()
    async with in_memory("after", log, bus) as after:
        async with asyncio.timeout(5):
            while after.connected_since_ns is None:  # noqa: ASYNC110 - what it comes to is told by no event
                await asyncio.sleep(0.01)
        assert after.problems == ["feed: this process has just started and still reads the log"]
        log.delivers.set()
        await after.wait_ready(timeout_seconds=1)
        assert after.fleet.nodes.keys() == {"gpu-1"}
