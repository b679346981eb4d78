"""When a process may call itself ready."""

from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from tests.support.given import an_approved_node
from tests.support.held_log import HeldLog
from tests.support.yard import eventually


async def test_a_process_that_lacks_one_event_of_its_start_is_not_ready() -> None:
    """X20: what it hasn't read is not what isn't there."""
    log = MemoryLog()
    async with in_memory("before", log, MemoryBus()) as before:
        await before.wait_ready(timeout_seconds=1)
        await before.journal.commit(before.envelope(), lambda _fleet: an_approved_node("gpu-1"))
    last = await log.last_sequence()
    held = HeldLog(log, last, first=last - 1)
    async with in_memory("after", held, MemoryBus()) as after:
        await held.followed.wait()
        await eventually(lambda: after.connected_since_ns is not None and after.fleet.sequence == last - 1)
        assert after.problems == ["feed: this process has just started and still reads the log"]
        held.release()
        await after.wait_ready(timeout_seconds=1)
        assert after.fleet.sequence == last
