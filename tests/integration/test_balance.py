"""Two router processes on one fleet: what each sees of the other, and how evenly they load the replicas together."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from modelyard_events.ids import ReplicaId
from tests.support.balance import Load, router_processes
from tests.support.nats_servers import Servers
from tests.support.yard import Yard, a_router, a_yard

REPLICAS = ("r-1", "r-2", "r-3", "r-4")


@pytest.fixture
async def yard(nats_r1: Servers) -> AsyncIterator[Yard]:
    await nats_r1.forget()
    async with a_yard(nats_r1.url) as yard:
        yield yard


async def test_two_router_processes_under_load_keep_replicas_evenly_busy(yard: Yard) -> None:
    """X24, T1, T2: over time the busiest has at most a tenth more in flight than the mean, and nothing is left."""
    await yard.model(nodes=[f"n{number}" for number in range(4)])
    for number, replica in enumerate(REPLICAS):
        await yard.ready(replica, node=f"n{number}")
    async with router_processes(yard.url, count=2) as stubs:
        load = Load(REPLICAS, hold_seconds=0.2)
        balance = await load.run(stubs, clients=24, seconds=3)
    assert balance.mean <= 1.1, balance
    assert balance.moment(0.5) <= 1.34, "four of twelve more than the mean, half of the time"
    assert sum(balance.served.values()) > 300
    assert min(balance.served.values()) > 0.8 * max(balance.served.values())


async def test_traffic_of_two_routers_spreads_at_once_to_a_replica_that_comes(yard: Yard) -> None:
    """X24: after a scale-out neither the old ones keep it all, nor does the new one get it all."""
    await yard.model(nodes=["n0", "n1", "n2"])
    await yard.ready("r-1", node="n0")
    await yard.ready("r-2", node="n1")
    async with router_processes(yard.url, count=2) as stubs:
        load = Load(REPLICAS[:2], hold_seconds=0.2)
        await load.run(stubs, clients=24, seconds=0.5)
        await yard.ready("r-3", node="n2")
        grown = Load(REPLICAS[:3], hold_seconds=0.2)
        balance = await grown.run(stubs, clients=24, seconds=3)
    assert balance.mean <= 1.1, balance


async def test_what_one_router_grants_the_other_counts_within_a_quarter_of_a_second(yard: Yard) -> None:
    """T2: a lease's beginning and its end, at any moment of the reports' beat."""
    await yard.model(nodes=["n0"])
    await yard.ready("r-1", node="n0")
    async with a_router(yard.url) as one, a_router(yard.url) as other:
        replica = ReplicaId("r-1")

        async def seconds_until(count: int) -> float:  # it has no event: nothing waits for counts
            began = time.monotonic()
            async with asyncio.timeout(5):
                while (candidate := other._board.get(replica)) is None or candidate.others != count:  # noqa: ASYNC110 - see above
                    await asyncio.sleep(0.001)
            return time.monotonic() - began

        took = []
        for number in range(12):
            lease = await one.route("m")
            took.append(await seconds_until(1))
            one.release(lease.lease)
            took.append(await seconds_until(0))
            await asyncio.sleep(number * 0.021)
        assert sorted(took)[-2] <= 0.25, took
