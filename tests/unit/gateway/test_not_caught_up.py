"""A gateway that has just started and hasn't read the log to its end: it says that it doesn't know yet."""

import httpx

from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.effects.upstream import Pool
from modelyard_services.gateway.app import Gateway
from modelyard_services.router.router import Router
from tests.support.given import a_model, an_approved_node
from tests.support.held_log import HeldLog


async def test_no_model_is_unknown_before_the_log_was_read_to_its_end() -> None:
    """T8: 503 with a Retry-After while the fold is incomplete; 404 only once it is known that there is none."""
    log = MemoryLog()
    async with in_memory("given", log, MemoryBus()) as given:
        await given.wait_ready(timeout_seconds=5)
        await given.journal.commit(given.envelope(), lambda _fleet: [*an_approved_node("n1"), *a_model("m")])
    held = HeldLog(log, await log.last_sequence(), first=1)
    async with in_memory("gateway", held, MemoryBus()) as runtime, Router(runtime) as router, Pool() as pool:
        transport = httpx.ASGITransport(Gateway(router, pool, wait_seconds=0.0))
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            await held.followed.wait()
            asked = {model: await client.post("/v1/completions", json={"model": model}) for model in ("m", "no such")}
            asked["listed"] = await client.get("/v1/models/m")
            assert {name: answer.status_code for name, answer in asked.items()} == dict.fromkeys(asked, 503)
            assert all("retry-after" in answer.headers for answer in asked.values())
            held.release()
            await router.wait_ready(timeout_seconds=5)
            assert (await client.get("/v1/models/m")).status_code == 200
            assert (await client.post("/v1/completions", json={"model": "no such"})).status_code == 404
