"""What a lease's cell promises, in memory, on a server alone and on a cluster of three whose leader is killed."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelyard_events.subjects import LEASES_STREAM, RECONCILER_LEASE
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.lease.cell import Cell, JetStreamCell, Kept, MemoryCell
from modelyard_services.effects.lease.lease import Lease
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.errors import UnavailableError
from tests.contract.conftest import declare
from tests.support.nats_servers import Servers

PATIENT = 5.0
RIVALS = 5
ROUNDS = 20
LEASE_SECONDS = 1.0


@pytest_asyncio.fixture
async def cells(servers: Servers | None) -> AsyncIterator[list[Cell]]:
    """One fresh cell as `RIVALS` processes see it, each over a connection of its own."""
    if servers is None:
        yield [MemoryCell()] * RIVALS
        return
    await declare(servers)
    clients = [await connect(servers.endpoint) for _ in range(RIVALS)]
    yield [JetStreamCell(client, RECONCILER_LEASE) for client in clients]
    for client in clients:
        await client.close()


async def settled(cell: Cell, body: bytes, *, revision: int) -> int | None:
    """`replace`, as often as it takes to get an answer; one that landed unheard says None."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await cell.replace(body, revision=revision, timeout_seconds=PATIENT)
            except UnavailableError:
                await asyncio.sleep(0.05)


async def read(cell: Cell) -> Kept | None:
    async with asyncio.timeout(60):
        while True:
            try:
                return await cell.read(timeout_seconds=PATIENT)
            except UnavailableError:
                await asyncio.sleep(0.05)


async def test_a_cell_that_was_never_written_is_empty(cells: list[Cell]) -> None:
    assert await read(cells[0]) is None


async def test_a_replaced_cell_holds_the_new_value_alone(cells: list[Cell]) -> None:
    first = await settled(cells[0], b"one", revision=0)
    assert first is not None
    second = await settled(cells[0], b"two", revision=first)
    assert second is not None
    assert second > first
    assert await read(cells[1]) == Kept(second, b"two")


@pytest.mark.parametrize("wrong", [0, 1_000_000])
async def test_another_revision_replaces_nothing(cells: list[Cell], wrong: int) -> None:
    first = await settled(cells[0], b"one", revision=0)
    assert await settled(cells[1], b"two", revision=wrong) is None
    assert await read(cells[1]) == Kept(first or 0, b"one")


async def test_of_rivals_one_succeeds(cells: list[Cell]) -> None:
    """On a cluster others may be in flight: they are refused, too."""
    revision = 0
    for round_ in range(ROUNDS):
        bodies = [b"%d/%d" % (round_, rival) for rival in range(RIVALS)]
        outcomes = await asyncio.gather(
            *(settled(cell, body, revision=revision) for cell, body in zip(cells, bodies, strict=True))
        )
        (won,) = [number for number, outcome in enumerate(outcomes) if outcome is not None]
        kept = await read(cells[0])
        assert kept == Kept(outcomes[won] or 0, bodies[won])
        revision = kept.revision


async def test_nobody_is_told_anything_while_no_server_answers(nats_alone: Servers) -> None:
    await declare(nats_alone)
    client = await connect(nats_alone.endpoint)
    cell = JetStreamCell(client, RECONCILER_LEASE)
    revision = await settled(cell, b"one", revision=0)
    nats_alone.nodes[0].kill()
    with pytest.raises(UnavailableError):
        await cell.read(timeout_seconds=0.2)
    with pytest.raises(UnavailableError):
        await cell.replace(b"two", revision=revision or 0, timeout_seconds=0.2)
    nats_alone.revive()
    assert await read(cell) == Kept(revision or 0, b"one"), "a server that comes back knows who had what"
    await client.close()


async def test_a_stream_that_is_gone_is_no_free_lease(nats_r1: Servers) -> None:
    """Else everybody would take it at every look."""
    await declare(nats_r1)
    await nats_r1.forget(LEASES_STREAM)
    client = await connect(nats_r1.endpoint)
    cell = JetStreamCell(client, RECONCILER_LEASE)
    with pytest.raises(UnavailableError, match=LEASES_STREAM):
        await cell.read(timeout_seconds=PATIENT)
    with pytest.raises(UnavailableError):
        await cell.replace(b"one", revision=0, timeout_seconds=PATIENT)
    await client.close()


@pytest.mark.timeout(180)
async def test_with_the_leader_killed_one_acts_again_and_never_two(nats_r3: Servers) -> None:
    """C1 on a cluster: an election takes seconds, in which nobody can renew and so nobody acts for long."""
    await declare(nats_r3)
    clients = [await connect(nats_r3.endpoint) for _ in range(2)]
    leases = [
        Lease(
            lambda client=client: JetStreamCell(client, RECONCILER_LEASE),  # type: ignore[misc]
            holder=f"r{number}",
            seconds=LEASE_SECONDS,
            clock=Clock(),
        )
        for number, client in enumerate(clients)
    ]
    at_once: list[int] = []

    async def watch() -> None:
        while True:
            at_once.append(sum(lease.term is not None for lease in leases))
            await asyncio.sleep(0.002)

    tasks = [asyncio.create_task(each) for each in (watch(), *(lease.keep() for lease in leases))]
    try:
        await _one_acts(leases)
        leader = await nats_r3.leader(LEASES_STREAM)
        leader.kill()
        await asyncio.sleep(2 * LEASE_SECONDS)
        await _one_acts(leases)
        assert max(at_once) == 1
    finally:
        for task in tasks:
            task.cancel()
        nats_r3.revive()
        await nats_r3.wait_ready()
        for client in clients:
            await client.close()


async def _one_acts(leases: list[Lease]) -> None:
    async with asyncio.timeout(60):
        while not any(lease.term is not None for lease in leases):  # noqa: ASYNC110 - time says it, no event
            await asyncio.sleep(0.02)
