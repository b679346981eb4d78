"""The logs that keep the contract: in memory, on a server alone, on a cluster of three."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelyard_services.effects.log.contract import Log
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.jetstream import open_log
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.log.streams import Layout, declare_streams
from tests.support.nats_servers import Servers


async def declare(servers: Servers, **layout: int) -> str:
    """Fresh streams on `servers`; the log's id."""
    await servers.forget()
    client = await connect(servers.endpoint)
    try:
        return await declare_streams(client, Layout(replicas=servers.replicas, **layout))
    finally:
        await client.close()


@pytest.fixture(params=["memory", "r1", "r3"])
def servers(request: pytest.FixtureRequest) -> Servers | None:
    """Where the log lives; None: in memory."""
    return None if request.param == "memory" else request.getfixturevalue(f"nats_{request.param}")


@pytest_asyncio.fixture
async def log(servers: Servers | None) -> AsyncIterator[Log]:
    """An empty log."""
    if servers is None:
        yield MemoryLog()
        return
    await declare(servers)
    async with open_log(servers.endpoint) as opened:
        yield opened
