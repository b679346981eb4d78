"""A real PostgreSQL for tests: started once a session, a fresh empty database for each test.

Use the fixture `database`; tests/conftest.py makes it known.
Invariant: the server is the embedded one of `modelyard up` in all but fsync, which no test outlives.
"""

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psycopg
import pytest
from psycopg import sql

from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.postgres import USER, embedded_postgres


class Database(msgspec.Struct, frozen=True):
    """An empty database of its own.

    Attributes:
        url: `postgresql://…` for psycopg, synchronous and asynchronous, as a user without superpowers.
        sqlalchemy_url: the same as `postgresql+psycopg://…`, for either kind of engine.
        superuser_url: the same database as the superuser, for tests that look from outside or cut connections.
    """

    url: str
    sqlalchemy_url: str
    superuser_url: str


class TestServer:
    """A running server that hands out databases."""

    __test__ = False

    def __init__(self, connection: psycopg.Connection, *, url: str, superuser_url: str) -> None:
        self._connection = connection
        self._url = url
        self._superuser_url = superuser_url
        self._numbers = itertools.count(1)

    def new_database(self) -> Database:
        name = f"test_{next(self._numbers)}"
        create = "CREATE DATABASE {} OWNER {} TEMPLATE template0 STRATEGY file_copy"
        self._connection.execute(sql.SQL(create).format(sql.Identifier(name), sql.Identifier(USER)))
        url = self._url.rsplit("/", 1)[0] + f"/{name}"
        return Database(
            url=url,
            sqlalchemy_url=url.replace("postgresql://", "postgresql+psycopg://", 1),
            superuser_url=self._superuser_url.rsplit("/", 1)[0] + f"/{name}",
        )

    def drop(self, database: Database) -> None:
        name = database.url.rsplit("/", 1)[1]
        self._connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[TestServer]:
    # A loop of its own that nobody else sees: pytest-asyncio gives each test another.
    with (
        tempfile.TemporaryDirectory(prefix="modelyard-postgres-") as name,
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
    ):
        tree = ProcessTree(Path(name) / "run")
        tree.hold()
        embedded = embedded_postgres(Path(name))
        try:
            child = msgspec.structs.replace(embedded.child, argv=(*embedded.child.argv, "--fsync=off"))
            runner.run(tree.start(child))
            with psycopg.connect(embedded.superuser_url, autocommit=True) as connection:
                yield TestServer(connection, url=embedded.url, superuser_url=embedded.superuser_url)
        finally:
            runner.run(tree.stop())


@pytest.fixture
def database(postgres_server: TestServer) -> Iterator[Database]:
    """An empty database that exists for one test."""
    fresh = postgres_server.new_database()
    yield fresh
    postgres_server.drop(fresh)
