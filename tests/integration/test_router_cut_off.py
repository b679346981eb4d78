"""A router that NATS can't hear: it refuses what nobody would see, and goes on by itself once it is heard again."""

import asyncio
import time

import pytest

from modelyard_services.errors import UnavailableError
from tests.support.nats_servers import Servers
from tests.support.yard import a_gateway, a_router, a_yard, eventually, leases_on

CHAT = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "word " * 20}]}


async def test_a_router_cut_off_takes_no_new_request_finishes_the_old_and_comes_back(nats_alone: Servers) -> None:
    """DESIGN 4, T2: two seconds unheard, and no lease is granted that the others would never see."""
    async with (
        a_yard(nats_alone.url) as yard,
        a_router(nats_alone.url) as router,
        a_gateway(router) as client,
    ):
        await yard.model(nodes=["n1"])
        await yard.ready("r-1", "--token-seconds", "0.25", node="n1")
        await router.runtime.journal.passed(yard.runtime.fleet.sequence, timeout_seconds=5)
        streaming = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        answer = await streaming
        nats_alone.nodes[0].pause()
        paused = time.monotonic()
        try:
            await eventually(lambda: bool(router.problems))
            assert 1.5 < time.monotonic() - paused < 3.5
            with pytest.raises(UnavailableError):
                await router.route("m")
            refused = await client.post("/v1/embeddings", json={"model": "m", "input": "x"})
            assert (refused.status, refused.headers["x-should-retry"]) == (503, "true")
            assert leases_on(router, "r-1") == 1
            assert (await answer.read()).rstrip().endswith(b"[DONE]")
        finally:
            nats_alone.nodes[0].resume()
        await router.wait_ready(timeout_seconds=20)
        assert (await client.post("/v1/embeddings", json={"model": "m", "input": "x"})).status == 200
