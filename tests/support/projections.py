"""Real projections for tests: histories in a log, projectors over a database, and what the database then holds."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing

from sqlalchemy import func, select

from modelyard_events.codec import encode, subject_of
from modelyard_events.envelope import Recorded
from modelyard_projections import tables
from modelyard_projections.fleet import Fleet
from modelyard_projections.hashing import StateHash
from modelyard_projections.queries import projection, rows_hash
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.database import Database
from modelyard_services.effects.log.contract import Log, Message
from modelyard_services.projector.projector import Projector
from tests.support.histories import Historian, decoded
from tests.support.nats_servers import Servers
from tests.support.postgres import Database as EmptyDatabase

WAIT_SECONDS_MAX = 30.0


class Writer:
    """Appends a random history to a log, batch by batch; `historian.fleet` is the fold of what it appended."""

    def __init__(self, log: Log, seed: int = 0, **sizes: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - a history, not a secret
        self.historian = Historian(chance.choice, **sizes)
        self._log = log
        self._last: dict[str, int] = {}

    async def append(self, batches: int) -> int:
        """Append as many batches; the last sequence."""
        sequence = 0
        for _ in range(batches):
            sequence = await self.append_batch(self.historian.batch())
        return sequence

    async def append_batch(self, batch: Sequence[Recorded]) -> int:
        messages = [
            Message(
                subject=subject_of(one.event),
                event_id=one.event_id,
                body=encode(one.event, one.envelope),
                expected=self._last.get(subject_of(one.event), 0),
            )
            for one in batch
        ]
        sequences = await self._log.append(messages)
        for message, sequence in zip(messages, sequences, strict=True):
            self._last[message.subject] = sequence
        return sequences[-1]

    async def append_raw(self, body: bytes, *, node: str = "raw") -> int:
        """Append a body that no codec made."""
        subject = f"modelyard.log.node.{node}"
        expected = self._last.get(subject, 0)
        (sequence,) = await self._log.append([Message(subject, f"raw-{expected}", body, expected)])
        self._last[subject] = sequence
        return sequence


@contextlib.asynccontextmanager
async def opened(database: EmptyDatabase) -> AsyncIterator[Database]:
    """The database as processes open it."""
    one = Database(database.url, process="test")
    try:
        yield one
    finally:
        await one.close()


@contextlib.asynccontextmanager
async def projecting(log: Log, database: Database) -> AsyncIterator[Projector]:
    """A projector at work meanwhile; its failure is the test's."""
    projector = Projector(database, Clock())
    task = asyncio.create_task(projector.run(log))
    try:
        yield projector
        if task.done():
            task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


async def until(condition: Callable[[], bool], *, seconds: float = WAIT_SECONDS_MAX) -> None:
    """Wait for `condition`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is waited for lies in another task or process
            await asyncio.sleep(0.005)


async def projected(database: Database, sequence: int) -> None:
    """Wait until the database stands at `sequence` or beyond."""
    async with asyncio.timeout(WAIT_SECONDS_MAX):
        while True:
            with contextlib.suppress(Exception):  # not migrated yet
                async with database.reading() as connection:
                    found = await projection(connection)
                    if found is not None and found.sequence >= sequence:
                        return
            await asyncio.sleep(0.02)


async def replayed(log: Log) -> Fleet:
    """The fold of all that the log holds."""
    fleet, last = Fleet(), await log.last_sequence()
    async with aclosing(log.follow(after=0)) as following:
        async for chunk in following:
            fleet.apply_all(map(decoded, chunk))
            if fleet.sequence >= last:
                return fleet
    raise AssertionError("the log ended")


async def verify(database: Database, log: Log) -> None:
    """The rows are the replayed log's, by their own columns; every event stands in the history once."""
    fleet = await replayed(log)
    async with database.reading() as connection:
        found = await projection(connection)
        assert found is not None
        assert (found.sequence, found.log_id) == (fleet.sequence, log.log_id)
        assert await rows_hash(connection) == found.state_hash == StateHash.of(fleet).text
        column = tables.events.c.sequence
        count, first, last = (await connection.execute(select(func.count(), func.min(column), func.max(column)))).one()
        assert (count, first, last) == (fleet.sequence, 1, fleet.sequence)


class ProjectorProcess:
    """A projector process, to be killed."""

    def __init__(self, servers: Servers, database: EmptyDatabase, *, status_port: int | None = None) -> None:
        self._argv = [sys.executable, "-m", "modelyard_services", "projector", "--log-level", "warning"]
        self._argv += ["--nats-url", servers.url, "--database-url", database.url]
        if status_port is not None:
            self._argv += ["--status-port", str(status_port)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._argv)  # noqa: S603 - our own program

    def kill(self) -> None:
        """As by a crash."""
        assert self._process is not None
        assert self._process.poll() is None, "it ended by itself"
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    def stop(self) -> int:
        """As by its supervisor; its exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(20)


@contextlib.contextmanager
def projector_process(
    servers: Servers, database: EmptyDatabase, *, status_port: int | None = None
) -> Iterator[ProjectorProcess]:
    """A process that is started, and killed at the end if it still runs."""
    process = ProjectorProcess(servers, database, status_port=status_port)
    process.start()
    try:
        yield process
    finally:
        if process._process is not None and process._process.poll() is None:
            process.kill()
