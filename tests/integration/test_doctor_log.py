"""The doctor before a real cluster: which copies of the log are there, what is missing, and that it makes nothing."""

import asyncio
from collections.abc import Callable

import pytest

from modelyard_services.effects.log.contract import LogUnavailable
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.supervisor.doctor import services
from modelyard_services.supervisor.doctor.findings import Finding
from tests.support.nats_servers import Servers

SETTLE_SECONDS = 20.0
"""A peer counts as away after five seconds of silence; an election in between takes as long again."""


@pytest.mark.timeout(120)
async def test_a_copy_of_the_log_that_is_away_is_named(nats_r3: Servers) -> None:
    """T8."""
    await nats_r3.forget()
    with pytest.raises(LogUnavailable, match="isn't declared yet"):
        await services.log(_urls(nats_r3))
    client = await connect(nats_r3.endpoint)
    log_id = await declare_streams(client, Layout(replicas=3))
    await client.close()

    await _told(nats_r3, lambda copies: copies.status == "ok")
    leader = await nats_r3.leader()
    follower = next(node for node in nats_r3.nodes if node is not leader)
    try:
        follower.kill()
        await _told(nats_r3, lambda copies: copies.status == "broken" and follower.name in copies.found)
    finally:
        nats_r3.revive()
    await _told(nats_r3, lambda copies: copies.status == "ok")
    assert (await services.log(_urls(nats_r3)))[1].log_id == log_id


async def _told(servers: Servers, wanted: Callable[[Finding], bool]) -> None:
    """Wait until what is said of the copies is as `wanted`."""
    async with asyncio.timeout(SETTLE_SECONDS):
        while True:
            found, _log = await services.log(_urls(servers))
            copies = next(finding for finding in found if finding.check == "log copies")
            if wanted(copies):
                return
            await asyncio.sleep(0.1)


def _urls(servers: Servers) -> str:
    return ",".join(servers.endpoint.urls)
