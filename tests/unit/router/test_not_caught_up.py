"""A router that has just started and hasn't read the log to its end: it knows of no model that there is none."""

import pytest

from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.errors import ModelUnknownError, UnavailableError
from modelyard_services.router.router import Router
from tests.support.given import a_model
from tests.support.held_log import HeldLog


async def test_a_router_routes_nothing_before_the_log_was_read_to_its_end() -> None:
    """X20: callers of gRPC and of the library come by no gateway that would ask."""
    log = MemoryLog()
    async with in_memory("given", log, MemoryBus()) as given:
        await given.wait_ready(timeout_seconds=5)
        await given.journal.commit(given.envelope(), lambda _fleet: a_model("m"))
    held = HeldLog(log, await log.last_sequence(), first=0)
    async with in_memory("router", held, MemoryBus()) as runtime, Router(runtime) as router:
        await held.followed.wait()
        with pytest.raises(UnavailableError, match="still reads the log"):
            await router.route("m")
        held.release()
        await router.wait_ready(timeout_seconds=5)
        with pytest.raises(ModelUnknownError):
            await router.route("no such")
