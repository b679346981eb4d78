"""The history answers who, what, when and why, page by page (H1-H3, DESIGN 6)."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from sqlalchemy import text

from modelyard_events.codec import tag_of
from modelyard_events.envelope import Recorded
from modelyard_projections.fleet import Fleet
from modelyard_projections.history import mentions
from modelyard_projections.queries import (
    EventFilter,
    decision,
    effects_of,
    event_by_id,
    event_by_sequence,
    event_page,
    projection,
)
from modelyard_services.effects.database import Database
from modelyard_services.effects.log.memory import MemoryLog
from tests.support.histories import decoded
from tests.support.postgres import Database as EmptyDatabase
from tests.support.projections import Writer, opened, projected, projecting

BATCHES = 500


class Past:
    """A projected history, and what it should be found by."""

    def __init__(self, database: Database, events: list[Recorded], concerned: list[set[tuple[str, str]]]) -> None:
        self.database = database
        self.events = events
        self.concerned = concerned

    async def found(self, wanted: EventFilter, *, limit: int = 1_000) -> list[int]:
        """The sequences of all pages."""
        sequences: list[int] = []
        after: int | None = 0
        while after is not None:
            async with self.database.reading() as connection:
                page = await event_page(connection, wanted, after=after, limit=limit)
            assert len(page.items) <= limit
            sequences += [item.sequence for item in page.items]
            after = page.next
        return sequences

    def concerning(self, kind: str, name: str) -> list[int]:
        found = zip(self.events, self.concerned, strict=True)
        return [event.sequence for event, those in found if (kind, name) in those]


@pytest_asyncio.fixture
async def past(database: EmptyDatabase) -> AsyncIterator[Past]:
    log = MemoryLog()
    writer = Writer(log, 21)
    last = await writer.append(BATCHES)
    async with opened(database) as read_model:
        async with projecting(log, read_model):
            await projected(read_model, last)
        events = [decoded(one) for sequence in range(1, last + 1) if (one := await log.read(sequence)) is not None]
        fleet, concerned = Fleet(), []
        for event in events:
            concerned.append(set(mentions(event, fleet)))
            fleet.apply(event)
        yield Past(read_model, events, concerned)  # type: ignore[arg-type]  # its kinds are texts


async def test_pages_of_any_size_are_the_whole_history_in_order(past: Past) -> None:
    everything = [event.sequence for event in past.events]
    assert await past.found(EventFilter()) == everything
    assert await past.found(EventFilter(), limit=7) == everything


async def test_each_entity_finds_all_that_concerns_it(past: Past) -> None:
    """Also what names only its replicas."""
    for model in ("m", "Qwen/Qwen3-32B:q4", "model 0"):
        assert await past.found(EventFilter(model=model), limit=50) == past.concerning("model", model)
    for node in ("n0", "n3", "nobody"):
        assert await past.found(EventFilter(node=node)) == past.concerning("node", node)
    kind, name = next(one for those in past.concerned for one in those if one[0] == "replica")
    assert await past.found(EventFilter(replica=name)) == past.concerning(kind, name)


@pytest.mark.parametrize("front", ["replica.placed.v1", "replica.placed", "replica", "node", "nothing", "repl"])
async def test_a_type_may_be_given_whole_or_by_its_front(front: str, past: Past) -> None:
    tags = [(event.sequence, tag_of(event.event)) for event in past.events]
    expected = [sequence for sequence, tag in tags if tag == front or tag.startswith(front + ".")]
    assert await past.found(EventFilter(type=front)) == expected


async def test_conditions_hold_together(past: Past) -> None:
    wanted = EventFilter(node="n0", model="m", type="replica", correlation="story-3", actor="somebody")
    both = set(past.concerning("node", "n0")) & set(past.concerning("model", "m"))
    expected = [
        event.sequence
        for event in past.events
        if event.sequence in both
        and tag_of(event.event).startswith("replica.")
        and event.envelope.correlation == "story-3"
    ]
    assert expected
    assert await past.found(wanted) == expected
    assert await past.found(EventFilter(actor="nobody")) == []


async def test_a_time_range_takes_its_beginning_and_not_its_end(past: Past) -> None:
    begin, end = past.events[100].time_ns, past.events[300].time_ns
    expected = [event.sequence for event in past.events if begin <= event.time_ns < end]
    assert await past.found(EventFilter(from_ns=begin, to_ns=end)) == expected


async def test_one_event_is_found_by_sequence_by_id_and_by_its_cause(past: Past) -> None:
    event = past.events[10]
    async with past.database.reading() as connection:
        by_sequence = await event_by_sequence(connection, event.sequence)
        by_id = await event_by_id(connection, event.event_id)
        assert by_sequence == by_id
        assert by_sequence is not None
        assert by_sequence.event_id == event.event_id
        assert await event_by_sequence(connection, 0) is None
        assert await event_by_id(connection, "nothing") is None
    async with past.database.transaction() as connection:
        await connection.execute(text("UPDATE events SET causation = 'c-1.0' WHERE sequence IN (5, 3)"))
        assert [one.sequence for one in await effects_of(connection, "c-1.0")] == [3, 5]


async def test_a_decision_is_found_by_the_id_of_its_event(past: Past) -> None:
    """H2."""
    event = next(one for one in past.events if tag_of(one.event) == "replica.placed.v1")
    async with past.database.reading() as connection:
        found = await decision(connection, event.event_id)
        assert await decision(connection, "nothing") is None
    assert found is not None
    assert (found.sequence, found.kind, found.policy) == (event.sequence, "placement", "test-1")


async def test_no_page_is_larger_than_the_largest(past: Past) -> None:
    async with past.database.reading() as connection:
        page = await event_page(connection, limit=10_000_000)
        stands = await projection(connection)
    assert stands is not None
    assert len(page.items) == min(1_000, stands.sequence)


async def test_an_entitys_history_is_read_from_an_index(past: Past) -> None:
    """A page of one node must not cost a scan of everybody's history."""
    async with past.database.transaction() as connection:
        # The table is so small here that the planner would rather do anything else.
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        await connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        one_node = "SELECT * FROM mentions WHERE kind = 'node' AND name = 'n0' AND sequence > 5 ORDER BY sequence"
        lines = [row[0] for row in await connection.execute(text(f"EXPLAIN {one_node}"))]
    assert "mentions_pkey" in lines[0]
    assert not any("Sort" in line for line in lines)
