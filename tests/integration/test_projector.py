"""The read model: the fold's rows in PostgreSQL, exactly once, whatever happens on the way (I9, H1)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import psycopg
import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import Connection, func, select, text

from modelyard_events.codec import decode
from modelyard_events.envelope import Recorded
from modelyard_events.ids import EventId, LabelKey, NodeName
from modelyard_events.node import NodeLabelsChanged, NodeRemoved, NodeResumed
from modelyard_projections import tables
from modelyard_projections.checkpoint import AnotherLogError, PastTheEndError
from modelyard_projections.queries import event_page, projection, rows_hash
from modelyard_projections.writes import read_checkpoint
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.database import Database
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.projector.errors import ProjectionStoppedError, RivalDiffersError
from modelyard_services.projector.projector import Projector
from tests.support.held_log import HeldLog
from tests.support.postgres import Database as EmptyDatabase
from tests.support.projections import Writer, opened, projected, projecting, until, verify


@pytest_asyncio.fixture
async def read_model(database: EmptyDatabase) -> AsyncIterator[Database]:
    async with opened(database) as one:
        yield one


async def test_the_migrations_build_the_tables_that_the_code_believes_in(read_model: Database) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), tables.metadata)

    await read_model.migrate()
    await read_model.migrate()
    async with read_model.transaction() as connection:
        found = await connection.run_sync(differences)
    # Alembic's own table is its business.
    assert [one for one in found if "alembic_version" not in str(one)] == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_reads_back_as_the_fold_that_it_gives(seed: int, read_model: Database) -> None:
    """I9: the hash from the columns read back is the live fold's, strange texts and large numbers included."""
    log = MemoryLog()
    writer = Writer(log, seed)
    async with projecting(log, read_model):
        await projected(read_model, await writer.append(400))
    await verify(read_model, log)


async def test_the_history_holds_every_event_byte_for_byte(read_model: Database) -> None:
    """Also those with a NUL in a text, which jsonb would refuse."""
    log = MemoryLog()
    writer = Writer(log, 7)
    async with projecting(log, read_model):
        last = await writer.append(300)
        await projected(read_model, last)
    async with read_model.reading() as connection:
        page = await event_page(connection)
    assert len(page.items) == min(last, 1_000)
    for item in page.items:
        stored = await log.read(item.sequence)
        assert stored is not None
        assert bytes(item.body) == stored.body
        again = decode(stored.body, sequence=1, time_ns=stored.time_ns, event_id=stored.event_id)
        assert (item.time, item.event_id, item.actor_name) == (again.time, stored.event_id, "somebody")


async def test_a_projector_that_starts_again_goes_on_where_the_rows_stand(read_model: Database) -> None:
    log = MemoryLog()
    writer = Writer(log, 1)
    for _ in range(4):
        last = await writer.append(50)
        async with projecting(log, read_model):
            await projected(read_model, last)
        await verify(read_model, log)


async def test_an_event_that_cant_be_read_stops_before_it_and_says_so_in_the_database(read_model: Database) -> None:
    log = MemoryLog()
    writer = Writer(log, 2)
    last = await writer.append(60)
    bad = await writer.append_raw(b'{"event":{"type":"node.teleported.v1"}}')
    assert bad == last + 1
    with pytest.raises(ProjectionStoppedError, match=f"log sequence {bad}: unknown tag 'node.teleported.v1'"):
        await run_to_its_end(log, read_model)
    async with read_model.reading() as connection:
        found = await projection(connection)
        assert found is not None
        assert found.sequence == last
        assert await rows_hash(connection) == found.state_hash
    assert found.status == "stopped"
    assert found.error is not None
    assert (found.error["sequence"], "upgrade this reader" in found.error["problem"]) == (bad, True)


async def test_an_event_that_contradicts_the_log_stops_its_whole_batch(read_model: Database) -> None:
    """The batch's first event folds, its second doesn't: neither may be seen."""
    log = MemoryLog()
    writer = Writer(log, 3)
    last = await writer.append(40)
    batch = writer.historian.batch()
    await writer.append_batch([batch[0], _removal_of_nobody(batch[0])])
    with pytest.raises(ProjectionStoppedError, match=r"node\.removed\.v1 refers to 'nobody', which doesn't exist"):
        await run_to_its_end(log, read_model)
    async with read_model.reading() as connection:
        found = await read_checkpoint(connection)
        assert found is not None
        assert found.sequence == last
        assert await rows_hash(connection) == found.state_hash
        assert (await connection.execute(select(func.max(tables.events.c.sequence)))).scalar_one() == last


async def test_rows_of_another_log_are_refused_before_anything_is_written(read_model: Database) -> None:
    first, second = MemoryLog("first"), MemoryLog("second")
    writer = Writer(first, 4)
    async with projecting(first, read_model):
        await projected(read_model, await writer.append(20))
    await Writer(second, 5).append(30)
    with pytest.raises(AnotherLogError, match="projected from log first, this is log second: point the projector"):
        await run_to_its_end(second, read_model)
    await verify(read_model, first)


async def test_a_log_that_lost_its_end_is_refused(read_model: Database) -> None:
    log, shorter = MemoryLog("log"), MemoryLog("log")
    async with projecting(log, read_model):
        await projected(read_model, await Writer(log, 6).append(30))
    await Writer(shorter, 6).append(10)
    with pytest.raises(PastTheEndError, match="the log lost events; restore it"):
        await run_to_its_end(shorter, read_model)


async def test_a_database_that_goes_away_is_waited_for(read_model: Database, database: EmptyDatabase) -> None:
    log = MemoryLog()
    writer = Writer(log, 8)
    async with projecting(log, read_model) as projector:
        await projected(read_model, await writer.append(30))
        async with _unreachable(database):
            last = await writer.append(30)
            await until(lambda: projector.problem is not None)
            assert "PostgreSQL is away" in str(projector.problem)
        await projected(read_model, last)
        assert projector.problem is None
    await verify(read_model, log)


async def test_rows_that_another_version_wrote_are_written_anew_at_the_start(read_model: Database) -> None:
    log = MemoryLog()
    writer = Writer(log, 9)
    async with projecting(log, read_model):
        await projected(read_model, await writer.append(80))
    async with read_model.transaction() as connection:
        await connection.execute(text("UPDATE projection SET state_hash = 'of another version'"))
        await connection.execute(text("UPDATE nodes SET address = 'nonsense'"))
        await connection.execute(text("DELETE FROM replicas"))
        await connection.execute(text("INSERT INTO labels VALUES ('ghost', 'a', 'b', 'system')"))
    async with projecting(log, read_model):
        await projected(read_model, await writer.append(1))
    await verify(read_model, log)


async def test_two_projectors_at_once_repeat_nothing_and_lose_nothing(
    read_model: Database, database: EmptyDatabase
) -> None:
    log = MemoryLog()
    writer = Writer(log, 10)
    async with opened(database) as other, projecting(log, read_model), projecting(log, other):
        last = 0
        for _ in range(40):
            last = await writer.append(10)
            await projected(read_model, last - 40)
        await projected(read_model, last)
    await verify(read_model, log)


async def test_a_rival_that_died_within_our_slice_is_replaced(read_model: Database, database: EmptyDatabase) -> None:
    """What the rival changed, and the rest of our slice changed back, must not stay: all rows are written."""
    log = MemoryLog()
    writer = Writer(log, 11)
    middle = await _with_node(writer)
    async with projecting(log, read_model):
        await projected(read_model, middle)
    held = HeldLog(log, middle)
    async with opened(database) as other, projecting(held, other) as late:
        await until(lambda: late.folded == middle)
        async with projecting(log, read_model):
            labelled = NodeLabelsChanged(node="n0", changed={LabelKey("rival"): "was here"})
            await projected(read_model, await writer.append_batch(writer.historian.record([labelled])))
        cleared = NodeLabelsChanged(node="n0", removed=(LabelKey("rival"),))
        await writer.append_batch(writer.historian.record([cleared]))
        last = await writer.append(20)
        held.release()
        await projected(read_model, last)
    await verify(read_model, log)


async def test_a_rival_of_another_version_is_noticed(read_model: Database) -> None:
    log = MemoryLog()
    writer = Writer(log, 12)
    middle = await writer.append(20)
    async with projecting(log, read_model):
        await projected(read_model, middle)
    held = HeldLog(log, middle)
    projector = Projector(read_model, Clock())
    running = asyncio.create_task(projector.run(held))
    await until(lambda: projector.folded == middle)
    async with read_model.transaction() as connection:
        await connection.execute(text("UPDATE projection SET state_hash = 'of another version'"))
    await writer.append(5)
    held.release()
    with pytest.raises(RivalDiffersError, match="another version of the projector"):
        await running


async def _with_node(writer: Writer) -> int:
    sequence = 0
    while NodeName("n0") not in writer.historian.fleet.nodes:
        sequence = await writer.append(1)
    return await writer.append_batch(writer.historian.record([NodeResumed(node="n0")])) or sequence


async def run_to_its_end(log: MemoryLog, database: Database) -> None:
    async with asyncio.timeout(20):
        await Projector(database, Clock()).run(log)


def _removal_of_nobody(after: Recorded) -> Recorded:
    return msgspec.structs.replace(after, event=NodeRemoved(node="nobody"), event_id=EventId("nobody.0"))


@contextlib.asynccontextmanager
async def _unreachable(database: EmptyDatabase) -> AsyncIterator[None]:
    name = database.url.rsplit("/", 1)[1]
    administration = database.superuser_url.rsplit("/", 1)[0] + "/postgres"
    async with await psycopg.AsyncConnection.connect(administration, autocommit=True) as connection:
        allow = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
        await connection.execute(allow.format(sql.Identifier(name), sql.Literal(False)))
        await connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        yield
        await connection.execute(allow.format(sql.Identifier(name), sql.Literal(True)))
