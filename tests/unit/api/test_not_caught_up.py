"""An API that has just started and hasn't read the log to its end: it doesn't know who may ask."""

from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.policy.tokens import create_token, digest_of
from tests.support.api import client_of
from tests.support.given import an_approved_node
from tests.support.held_log import HeldLog


async def test_nobody_is_let_in_before_the_tokens_are_known() -> None:
    """N4, X20: on loopback everybody is an admin while there is no token, and there might be one yet unread."""
    log = MemoryLog()
    async with in_memory("given", log, MemoryBus()) as given:
        await given.wait_ready(timeout_seconds=5)
        await given.journal.commit(given.envelope(), lambda _fleet: an_approved_node("n1"))
        await given.journal.commit(
            given.envelope(), lambda fleet: create_token(fleet, name="a", role="admin", digest=digest_of("secret"))
        )
    held = HeldLog(log, await log.last_sequence(), first=1)
    async with in_memory("api", held, MemoryBus()) as runtime, client_of(runtime, open_on_loopback=True) as client:
        await held.followed.wait()
        for headers in ({}, {"authorization": "Bearer secret"}):
            answer = await client.get("/api/v1/nodes", headers=headers)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert (await client.delete("/api/v1/nodes/n1")).status_code == 503
        held.release()
        await runtime.wait_ready(timeout_seconds=5)
        assert (await client.delete("/api/v1/nodes/n1")).status_code == 401
        assert (await client.get("/api/v1/nodes", headers={"authorization": "Bearer secret"})).status_code == 200
