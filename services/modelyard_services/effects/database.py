"""PostgreSQL for every process that reads or writes the read model: one way to connect, one way to be away.

Invariant: nothing waits for ever: connecting, a statement, a lock and an idle transaction each have a limit, and what
a client waits for has one of our own, since a server that is frozen keeps none of its own.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final, TypeVar

import psycopg
from psycopg.errors import ReadOnlySqlTransaction
from sqlalchemy import text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from modelyard_services.errors import InvalidRequestError, UnavailableError

CONNECT_SECONDS_MAX: Final = 5
"""A server that takes longer is away; we ask again with back-off."""

STATEMENT_SECONDS_MAX: Final = 30
"""The longest of ours, a rewrite of all rows of 20,000 replicas, takes 3 s."""

ANSWER_SECONDS_MAX: Final = 10
"""How long a client waits for a page of history: the slowest of ours takes 0.3 s."""

POOL_CONNECTIONS: Final = 5
"""Per process: pages of history are short, and PostgreSQL's own default is 100 for everybody."""

_DRIVER: Final = "postgresql+psycopg"
_SCHEMES: Final = frozenset({"postgresql", "postgres"})

Answer = TypeVar("Answer")


class Database:
    """One process's access to the read model.

    Raises:
        InvalidRequestError: its URL isn't one of a PostgreSQL database.
    """

    def __init__(self, url: str, *, process: str) -> None:
        self.engine: AsyncEngine = create_async_engine(
            _url(url),
            pool_size=POOL_CONNECTIONS,
            max_overflow=0,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_SECONDS_MAX,
                "application_name": f"modelyard-{process}",
                "options": (
                    f"-c statement_timeout={STATEMENT_SECONDS_MAX}s"
                    f" -c idle_in_transaction_session_timeout={STATEMENT_SECONDS_MAX}s"
                    " -c timezone=UTC"
                ),
            },
        )

    async def migrate(self) -> None:
        """Bring the schema up to date; of several processes one does it, the others wait.

        Raises:
            UnavailableError: PostgreSQL is away.
        """
        # Only the projector migrates; alembic would cost every other process half a second of its start.
        from modelyard_projections.migrations import migrate  # noqa: PLC0415

        async with self.transaction() as connection:
            await connection.run_sync(migrate)

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """A transaction: committed at the end, rolled back by an error.

        Raises:
            UnavailableError: PostgreSQL is away, or went away; nothing was committed, or the commit's answer was lost.
        """
        with _told():
            async with self.engine.begin() as connection:
                yield connection

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A read-only transaction that sees one moment throughout.

        Raises:
            UnavailableError: PostgreSQL is away.
        """
        with _told():
            async with self.engine.connect() as connection:
                await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
                async with connection.begin():
                    yield connection

    async def ask(self, query: Callable[[AsyncConnection], Awaitable[Answer]]) -> Answer:
        """What `query` finds in a `reading()`, within `ANSWER_SECONDS_MAX`.

        Raises:
            UnavailableError: PostgreSQL is away, or doesn't answer in time.
        """

        async def answer() -> Answer:
            async with self.reading() as connection:
                return await query(connection)

        asking = asyncio.create_task(answer())
        try:
            # Not asyncio.timeout: the driver, when cancelled, waits for the server to agree.
            done, _late = await asyncio.wait({asking}, timeout=ANSWER_SECONDS_MAX)
        finally:
            asking.cancel()
        if not done:
            asking.add_done_callback(_forgotten)
            raise UnavailableError(
                f"PostgreSQL does not answer: nothing within {ANSWER_SECONDS_MAX} s", retry_after_seconds=2
            )
        return asking.result()

    async def require(self) -> None:
        """Return if PostgreSQL lets us in and answers.

        Raises:
            UnavailableError: it doesn't; says why.
        """
        await self.ask(lambda connection: connection.execute(text("SELECT 1")))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()


def _url(written: str) -> URL:
    try:
        url = make_url(written)
    except (ArgumentError, ValueError):
        raise _unreadable() from None
    if url.get_backend_name() not in _SCHEMES:
        raise _unreadable()
    return url.set(drivername=_DRIVER)


def _unreadable() -> InvalidRequestError:
    # Without the value: a password may stand in it.
    return InvalidRequestError(
        "database_url: no URL of a PostgreSQL database; write postgresql://USER:PASSWORD@HOST:5432/NAME",
        field="database_url",
    )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if error.connection_invalidated or _is_away(error):
            raise UnavailableError(f"PostgreSQL is away: {_first_line(error.orig)}", retry_after_seconds=2) from error
        raise
    except (OSError, TimeoutError, NoConnectionError) as error:
        raise UnavailableError(f"PostgreSQL is away: {error}", retry_after_seconds=2) from error


def _forgotten(late: asyncio.Task[Answer]) -> None:
    """Nobody waits any more for how `late` ends, and asyncio would complain that nobody looked."""
    if not late.cancelled():
        late.exception()


def _is_away(error: DBAPIError) -> bool:
    # Operational: refused, shutting down, out of connections or disk, timed out, a deadlock. Read-only: a standby.
    # What is left (a constraint, a syntax) would fail again for ever.
    return isinstance(error.orig, psycopg.OperationalError | psycopg.InterfaceError | ReadOnlySqlTransaction)


def _first_line(error: BaseException | None) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
