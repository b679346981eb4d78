"""The log while its leader is killed and frozen under several writers.

What must hold afterwards: what was acknowledged is there, once, at the sequences that were given; what was refused
isn't; sequences have no hole; and each event follows the very event its writer had seen.
"""

import asyncio
from contextlib import AsyncExitStack

from msgspec import Struct, field

from modelyard_services.effects.log.contract import (
    Log,
    LogUnavailable,
    Message,
    SequenceMoved,
    Stored,
)
from modelyard_services.effects.log.jetstream import open_log
from tests.contract.conftest import declare
from tests.contract.decisions import A, M, event, read_all
from tests.support.nats_servers import Servers

HOT = M
"""A subject that every writer wants."""

PROCESSES = 2
WRITERS = 4
"""Writers per process: they share its appender."""

UPTIME_SECONDS = 2.0
DOWNTIME_SECONDS = 1.5
FROZEN_SECONDS = 4.0


class Record(Struct):
    """What the writers were told."""

    acknowledged: dict[str, int] = field(default_factory=dict)
    refused: set[frozenset[tuple[str, int]]] = field(default_factory=set)
    unknown: int = 0


async def test_killed_and_frozen_leaders_lose_nothing_and_double_nothing(nats_r3: Servers) -> None:
    """I10, I11."""
    await declare(nats_r3)
    record, stop = Record(), asyncio.Event()
    async with AsyncExitStack() as stack:
        logs = [await stack.enter_async_context(open_log(nats_r3.endpoint)) for _ in range(PROCESSES)]
        following = asyncio.create_task(_follow(logs[0], stop))
        writers = [
            asyncio.create_task(_write(log, f"{process}-{writer}", record, stop))
            for process, log in enumerate(logs)
            for writer in range(WRITERS)
        ]
        await _torment(nats_r3)
        stop.set()
        await asyncio.gather(*writers)
        stored = await read_all(logs[1])
        live = await following
    assert len(record.acknowledged) > 200
    _verify(stored, record)
    assert live == stored[: len(live)]


async def _torment(servers: Servers) -> None:
    await asyncio.sleep(UPTIME_SECONDS)
    for _ in range(2):
        leader = await servers.leader()
        leader.kill()
        await asyncio.sleep(DOWNTIME_SECONDS)
        await asyncio.to_thread(leader.start)
        await asyncio.sleep(UPTIME_SECONDS)
    leader = await servers.leader()
    leader.pause()
    await asyncio.sleep(FROZEN_SECONDS)
    leader.resume()
    await asyncio.sleep(UPTIME_SECONDS)


async def _follow(log: Log, stop: asyncio.Event) -> list[Stored]:
    """What a follower saw from the first event until well into the torment's end."""
    seen: list[Stored] = []
    async for chunk in log.follow(after=0):
        seen += chunk
        if stop.is_set() and seen[-1].sequence >= await log.last_sequence():
            break
    return seen


async def _write(log: Log, name: str, record: Record, stop: asyncio.Event) -> None:
    """Decide and append, as a journal does: the same ids however often it is refused."""
    own, expected, turn = f"{A}{name}", {f"{A}{name}": 0, HOT: 0}, 0
    while not stop.is_set():
        ids = [f"{name}.{turn}.{part}" for part in range(3)]
        parts = [[own], [HOT], [own, HOT, own]][turn % 3]
        await _append_once(log, list(zip(parts, ids, strict=False)), expected, record)
        turn += 1


async def _append_once(log: Log, parts: list[tuple[str, str]], expected: dict[str, int], record: Record) -> None:
    while True:
        decision = [event(subject, event_id, expected[subject]) for subject, event_id in parts]
        try:
            sequences = await log.append(decision)
        except SequenceMoved as moved:
            record.refused.add(_guarded(decision))
            if moved.sequence is not None:
                expected[moved.subject] = moved.sequence
        except LogUnavailable as away:
            record.unknown += not away.nothing_written
        else:
            for message, sequence in zip(decision, sequences, strict=True):
                assert message.event_id not in record.acknowledged
                record.acknowledged[message.event_id] = sequence
                expected[message.subject] = sequence
            return


def _guarded(decision: list[Message]) -> frozenset[tuple[str, int]]:
    """Ids and guards: what would stand in the log, all of it, had the decision been taken."""
    first_of = {message.subject: message for message in reversed(decision)}
    return frozenset((message.event_id, message.expected) for message in first_of.values())


def _verify(stored: list[Stored], record: Record) -> None:
    assert [s.sequence for s in stored] == list(range(1, len(stored) + 1))
    assert len({s.event_id for s in stored}) == len(stored)
    assert {s.event_id: s.sequence for s in stored}.items() >= record.acknowledged.items()
    taken = {(s.event_id, s.guard) for s in stored if s.guard is not None}
    assert not [refused for refused in record.refused if refused <= taken]
    previous: dict[str, int] = {}
    for one in stored:
        if one.guard is None:
            assert stored[previous[one.subject] - 1].event_id.rsplit(".", 1)[0] == one.event_id.rsplit(".", 1)[0]
        else:
            assert one.guard == previous.get(one.subject, 0)
        previous[one.subject] = one.sequence
