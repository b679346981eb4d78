"""The embedded PostgreSQL keeps its promises: real, quick, durable, and never left behind."""

import asyncio
import os
import signal
import stat
from pathlib import Path

import msgspec
import psycopg
import pytest
from sqlalchemy import create_engine, text

from modelyard_services.effects.embedded.children import ChildState, ProcessTree
from modelyard_services.effects.embedded.postgres import EmbeddedPostgres, embedded_postgres
from modelyard_services.effects.embedded.process import LiveProcess
from tests.support.postgres import Database, TestServer


async def test_acknowledged_rows_survive_kill_9_and_the_server_comes_back_by_itself(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_postgres(tmp_path)
        await tree.start(server.child)
        await _execute(server.url, "CREATE TABLE kept (number int); INSERT INTO kept VALUES (7)")
        os.kill(_pid(tree), signal.SIGKILL)
        await _restarted(tree)
        assert await _number(server.url, "SELECT number FROM kept") == 7


async def test_a_new_start_recovers_from_a_crash_whose_pid_another_program_has_now(tmp_path: Path) -> None:
    server = await _started_and_killed(tmp_path)
    lock = tmp_path / "postgres" / "cluster" / "postmaster.pid"
    _, rest = lock.read_text().split("\n", 1)
    # PostgreSQL takes another program of the same user for a rival.
    sleep = msgspec.structs.replace(server.child, name="other", argv=("sleep", "60"), before=None)
    other = LiveProcess(sleep)
    try:
        lock.write_text(f"{other.pid}\n{rest}")
        async with ProcessTree(tmp_path / "run") as tree:
            await tree.start(embedded_postgres(tmp_path).child)
            assert await _number(server.url, "SELECT 1") == 1
    finally:
        other.kill()


async def test_addresses_stay_valid_over_restarts(tmp_path: Path) -> None:
    urls = set()
    for _ in range(2):
        async with ProcessTree(tmp_path / "run") as tree:
            server = embedded_postgres(tmp_path)
            await tree.start(server.child)
            assert await _number(server.url, "SELECT 1") == 1
            urls.add(server.url)
    assert len(urls) == 1


async def test_the_program_owns_its_database_and_nothing_more(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_postgres(tmp_path)
        await tree.start(server.child)
        await _execute(server.url, "CREATE SCHEMA projection_v1")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await _execute(server.url, "COPY (SELECT 1) TO '/tmp/never'")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            await _execute(server.url, "CREATE ROLE another")


async def test_nobody_gets_in_without_the_password(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_postgres(tmp_path)
        await tree.start(server.child)
        password = server.url.split(":")[2].split("@")[0]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            await _execute(server.url.replace(password, "guessed"), "SELECT 1")


async def test_it_syncs_every_commit(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_postgres(tmp_path)
        await tree.start(server.child)
        query = "SELECT count(*) FROM pg_settings WHERE name IN ('fsync', 'synchronous_commit') AND setting = 'on'"
        assert await _number(server.url, query) == 2


async def test_secrets_and_data_are_closed_to_others(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        await tree.start(embedded_postgres(tmp_path).child)
        for path, mode in (("postgres", 0o700), ("postgres/cluster", 0o700), ("postgres/credentials.json", 0o600)):
            assert stat.S_IMODE((tmp_path / path).stat().st_mode) == mode


async def test_it_runs_below_directories_that_are_closed_to_its_user(tmp_path: Path) -> None:
    """Also as root, whom PostgreSQL refuses: its user then can't even look into our directories."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    async with ProcessTree(closed / "run") as tree:
        server = embedded_postgres(closed)
        await tree.start(server.child)
        assert await _number(server.url, "SELECT 1") == 1
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


async def test_the_server_is_never_root_and_keeps_no_more_than_the_passage(tmp_path: Path) -> None:
    async with ProcessTree(tmp_path / "run") as tree:
        await tree.start(embedded_postgres(tmp_path).child)
        status = _status(_pid(tree))
    assert "0" not in status["Uid"].split()
    passages = {0, 1 << 1, 1 << 2}
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Prm", "Eff", "Inh", "Amb")} <= passages
    assert status["NoNewPrivs"] == "1"


async def test_an_interrupted_set_up_is_begun_afresh(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "initdb.abc" / "cluster"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18")
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_postgres(tmp_path)
        await tree.start(server.child)
        assert await _number(server.url, "SELECT 1") == 1
    assert not half.parent.exists()


async def test_each_test_gets_an_empty_database_of_its_own(database: Database, postgres_server: TestServer) -> None:
    other = postgres_server.new_database()
    await _execute(database.url, "CREATE TABLE only_here (number int)")
    tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'only_here'"
    assert (await _number(database.url, tables), await _number(other.url, tables)) == (1, 0)
    postgres_server.drop(other)


def test_the_database_fixture_serves_sqlalchemy(database: Database) -> None:
    engine = create_engine(database.sqlalchemy_url)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


async def _started_and_killed(directory: Path) -> EmbeddedPostgres:
    tree = ProcessTree(directory / "run")
    async with tree:
        server = embedded_postgres(directory)
        await tree.start(server.child)
        pid = _pid(tree)
        # Stopped first, so that the lock file is still there when we look.
        lock = directory / "postgres" / "cluster" / "postmaster.pid"
        content = lock.read_text()
        os.kill(pid, signal.SIGKILL)
    lock.write_text(content)
    return server


def _pid(tree: ProcessTree) -> int:
    pid = tree.report()[0].pid
    assert pid is not None
    return pid


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


async def _restarted(tree: ProcessTree) -> None:
    async with asyncio.timeout(15):
        while (report := tree.report()[0]).restarts == 0 or report.state is not ChildState.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def _execute(url: str, statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements.split("; "):
            await connection.execute(statement.encode())


async def _number(url: str, query: str) -> int:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute(query.encode())).fetchone()
    assert row is not None
    return int(row[0])
