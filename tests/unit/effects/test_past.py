"""Any state of the past is what a replay up to there gives, whatever was asked before (H3, I9)."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from modelyard_events.envelope import Actor, Envelope, Recorded
from modelyard_events.ids import CommandId, NodeName
from modelyard_events.node import NodeCordoned
from modelyard_projections.fleet import Fleet
from modelyard_projections.hashing import StateHash
from modelyard_services.effects import past as module
from modelyard_services.effects.log.contract import Stored
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.past import Past
from modelyard_services.errors import InvalidRequestError, NotYetError, OverloadedError, UnavailableError
from tests.support.given import START_NS, a_pending_node
from tests.support.histories import decoded
from tests.support.projections import Writer

BATCHES = 120
SECOND_NS = 1_000_000_000


class Story:
    """A log with a random history, and the hash of every state it ever had."""

    def __init__(self) -> None:
        self.now_ns = START_NS
        self.log = MemoryLog(clock=self._tick)
        self.hashes: dict[int, str] = {0: StateHash.of(Fleet()).text}
        self.times: dict[int, int] = {}
        self.batch_of: dict[int, int] = {}

    async def write(self) -> None:
        writer = Writer(self.log, 4)
        for _ in range(BATCHES):
            self.now_ns += SECOND_NS
            await writer.append(1)
        fleet, batch = Fleet(), list[Recorded]()
        for stored in await self._stored():
            batch.append(decoded(stored))
            if stored.batch_end:
                fleet.apply_all(batch)
                self.hashes[fleet.sequence] = StateHash.of(fleet).text
                self.times[fleet.sequence] = stored.time_ns
                self.batch_of.update({one.sequence: fleet.sequence for one in batch})
                batch = []

    async def _stored(self) -> list[Stored]:
        return [one for number in range(await self.log.last_sequence()) if (one := await self.log.read(number + 1))]

    def _tick(self) -> int:
        return self.now_ns


@pytest.fixture
async def story() -> Story:
    story = Story()
    await story.write()
    return story


def hash_of(fleet: Fleet) -> str:
    return StateHash.of(fleet).text


@pytest.mark.parametrize("snapshot_events", [1, 37, 20_000])
async def test_every_sequence_gives_the_state_that_was(
    story: Story, snapshot_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H3: forwards, backwards and again, with many snapshots to begin at or none; of a batch it is the whole one."""
    monkeypatch.setattr(module, "SNAPSHOT_EVENTS", snapshot_events)
    past, last = Past(), await story.log.last_sequence()
    for sequence in [*range(0, last, 7), *range(last, 0, -11), *range(1, 40)]:
        fleet = await past.at_sequence(story.log, sequence)
        assert fleet.sequence == story.batch_of.get(sequence, 0)
        assert hash_of(fleet) == story.hashes[fleet.sequence]


async def test_a_time_gives_what_the_log_held_by_then(story: Story) -> None:
    """H3: a batch counts from the very moment that the log took it."""
    past = Past()
    ends = sorted(story.times)
    for before, end in zip([0, *ends], ends, strict=False):
        time_ns = story.times[end]
        found = [await past.at_time(story.log, at, now_ns=story.now_ns) for at in (time_ns, time_ns - 1)]
        assert [fleet.sequence for fleet in found] == [end, before]
        assert hash_of(found[0]) == story.hashes[end]


async def test_what_one_asks_for_is_his_own(story: Story) -> None:
    """I9: a caller that folds on in his state doesn't change the next one's."""
    past = Past()
    mine = await past.at_sequence(story.log, 10)
    mine.nodes.clear()
    assert hash_of(await past.at_sequence(story.log, 10)) == story.hashes[story.batch_of[10]]


async def test_no_more_snapshots_are_kept_than_fit(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SNAPSHOT_EVENTS", 10)
    monkeypatch.setattr(module, "SNAPSHOTS_BYTES_MAX", 50_000)
    past = Past()
    for sequence in range(1, await story.log.last_sequence()):
        await past.at_sequence(story.log, sequence)
        assert past._bytes() <= 50_000 or len(past._snapshots) == 1
    assert len(past._snapshots) > 1


async def test_a_moment_that_has_not_come_is_refused(story: Story) -> None:
    last = await story.log.last_sequence()
    with pytest.raises(InvalidRequestError, match=f"ends at sequence {last}"):
        await Past().at_sequence(story.log, last + 1)
    with pytest.raises(InvalidRequestError, match="still to come"):
        await Past().at_time(story.log, story.now_ns + 1, now_ns=story.now_ns)


class WatchedLog(MemoryLog):
    """A log that notes where its readers begin."""

    def __init__(self, log: MemoryLog) -> None:
        super().__init__()
        self._inner = log
        self.begun: list[int] = []

    async def last_sequence(self) -> int:
        return await self._inner.last_sequence()

    async def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        self.begun.append(after)
        async for chunk in self._inner.follow(after=after, subject=subject):
            yield chunk


async def test_a_replay_begins_at_the_newest_state_that_is_not_too_new(story: Story) -> None:
    past, log = Past(), WatchedLog(story.log)
    for sequence in (40, 90, 60, 100):
        await past.at_sequence(log, sequence)
    assert log.begun == [0, story.batch_of[40], story.batch_of[40], story.batch_of[90]]


class StalledLog(MemoryLog):
    """A log that gives its first chunk and then nothing."""

    def __init__(self, log: MemoryLog, chunk: int) -> None:
        super().__init__()
        self._inner = log
        self._chunk = chunk
        self.reads = 0

    async def last_sequence(self) -> int:
        return await self._inner.last_sequence()

    async def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        self.reads += 1
        if after < self._chunk:
            async for chunk in self._inner.follow(after=after, subject=subject):
                yield [one for one in chunk if one.sequence <= self._chunk]
                break
        await asyncio.Event().wait()


async def test_a_long_way_is_gone_in_parts(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    """H3: what was folded in time is kept, and the next one who asks goes on from there."""
    monkeypatch.setattr(module, "REPLAY_SECONDS_MAX", 0.1)
    whole, past = story.batch_of[20], Past()
    with pytest.raises(NotYetError, match=f"up to sequence {whole}"):
        await past.at_sequence(StalledLog(story.log, whole), 100)
    monkeypatch.setattr(module, "REPLAY_SECONDS_MAX", 60.0)
    assert list(past._snapshots) == [whole]
    assert hash_of(await past.at_sequence(story.log, 100)) == story.hashes[story.batch_of[100]]


async def test_so_many_may_wait_and_no_more(story: Story) -> None:
    past, log = Past(), StalledLog(story.log, story.batch_of[20])
    asking = [asyncio.create_task(past.at_sequence(log, 100)) for _ in range(module.REPLAYS_WAITING_MAX)]
    while not log.reads:  # noqa: ASYNC110 - the tasks are to have begun
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        with pytest.raises(OverloadedError, match="wait for their turn"):
            await past.at_sequence(story.log, 1)
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)
    assert hash_of(await past.at_sequence(story.log, 100)) == story.hashes[story.batch_of[100]]


async def test_an_event_that_cannot_be_read_ends_the_way_there(story: Story) -> None:
    """X20: what is behind it isn't known, and nobody guesses."""
    last = await story.log.last_sequence()
    writer = Writer(story.log)
    await writer.append_raw(b"no event", node="raw")
    with pytest.raises(UnavailableError, match=f"past sequence {last}"):
        await Past().at_sequence(story.log, last + 1)
    assert hash_of(await Past().at_sequence(story.log, last)) == story.hashes[last]


async def test_a_batch_that_contradicts_the_log_leaves_nothing_behind(story: Story) -> None:
    """I9: half a batch is no state, and nothing begins there later."""
    last, writer = await story.log.last_sequence(), Writer(story.log)
    events = [*a_pending_node("newcomer"), NodeCordoned(node=NodeName("ghost"))]
    envelope = Envelope(Actor("system", "test"), CommandId("c-wrong"), "c-wrong")
    recorded = [Recorded(0, 0, envelope.event_id(place), event, envelope) for place, event in enumerate(events)]
    await writer.append_batch(recorded)
    past = Past()
    for _ in range(2):
        with pytest.raises(UnavailableError, match="ghost"):
            await past.at_sequence(story.log, last + 1)
    assert all(kept <= last for kept in past._snapshots)
    assert hash_of(await past.at_sequence(story.log, last)) == story.hashes[last]
