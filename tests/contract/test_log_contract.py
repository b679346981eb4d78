"""What every log does: the one in memory, JetStream alone, and JetStream on a cluster of three."""

import asyncio
import time
from contextlib import aclosing

import pytest

from modelyard_services.effects.log.contract import (
    DECISION_MESSAGES_MAX,
    EVENT_BYTES_MAX,
    DecisionMalformed,
    DecisionTooLarge,
    EventIdReused,
    Log,
    LogReplaced,
    SequenceMoved,
)
from tests.contract.decisions import HARD, A, B, M, event, read_all, read_until


async def test_what_was_appended_is_read_back_as_it_was(log: Log) -> None:
    """I10."""
    before = time.time_ns()
    assert await log.append([event(A, "c1.0", body=b'{"type":"node.registered.v1"}')]) == (1,)
    stored = await log.read(1)
    assert stored is not None
    assert (stored.sequence, stored.subject, stored.event_id) == (1, A, "c1.0")
    assert (stored.body, stored.batch_end, stored.guard) == (b'{"type":"node.registered.v1"}', True, 0)
    assert before - 1_000_000_000 < stored.time_ns < time.time_ns() + 1_000_000_000


async def test_a_decision_gets_consecutive_sequences_in_its_order(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    sequences = await log.append([event(A, "c2.0", 1), event(M, "c2.1"), event(A, "c2.2", 1), event(B, "c2.3")])
    assert sequences == (2, 3, 4, 5)
    assert [s.event_id for s in await read_all(log)] == ["c1.0", "c2.0", "c2.1", "c2.2", "c2.3"]


async def test_a_guard_that_is_behind_refuses_and_tells_where_its_subject_is(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    await log.append([event(A, "c2.0", 1)])
    with pytest.raises(SequenceMoved) as refused:
        await log.append([event(A, "c3.0", 1)])
    assert (refused.value.subject, refused.value.sequence, refused.value.code) == (A, 2, "sequence_moved")
    assert await log.last_sequence() == 2


async def test_a_guard_for_a_new_subject_refuses_once_it_exists(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    with pytest.raises(SequenceMoved) as refused:
        await log.append([event(A, "c2.0", 0)])
    assert refused.value.sequence == 1


async def test_a_guard_ahead_of_its_subject_refuses_too(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    with pytest.raises(SequenceMoved) as refused:
        await log.append([event(A, "c2.0", 7)])
    assert refused.value.sequence == 1


async def test_other_subjects_do_not_move_a_guard(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    await log.append([event(B, "c2.0")])
    await log.append([event(f"{A}x", "c3.0")])
    assert await log.append([event(A, "c4.0", 1)]) == (4,)


async def test_one_moved_guard_refuses_the_whole_decision(log: Log) -> None:
    """I10: all or nothing, over several aggregates."""
    await log.append([event(A, "c1.0")])
    await log.append([event(M, "c2.0")])
    with pytest.raises(SequenceMoved) as refused:
        await log.append([event(A, "c3.0", 1), event(M, "c3.1", 0), event(B, "c3.2")])
    assert (refused.value.subject, refused.value.sequence) == (M, 2)
    assert [s.event_id for s in await read_all(log)] == ["c1.0", "c2.0"]
    assert await log.append([event(A, "c3.0", 1), event(M, "c3.1", 2), event(B, "c3.2")]) == (3, 4, 5)


async def test_a_refused_decision_may_be_made_again_with_the_same_ids(log: Log) -> None:
    """I11: event ids derive from the command, not from the try."""
    await log.append([event(A, "c1.0")])
    for expected in (0, 9):
        with pytest.raises(SequenceMoved):
            await log.append([event(A, "c2.0", expected)])
        with pytest.raises(SequenceMoved):
            await log.append([event(A, "c3.0", expected), event(B, "c3.1")])
    assert await log.append([event(A, "c2.0", 1)]) == (2,)
    assert await log.append([event(A, "c3.0", 2), event(B, "c3.1")]) == (3, 4)


async def test_the_same_event_again_gives_the_same_sequence(log: Log) -> None:
    """I11, on a plain publish."""
    decision = [event(A, "c1.0", body=b'{"n":1}')]
    assert await log.append(decision) == (1,)
    assert await log.append(decision) == (1,)
    await log.append([event(A, "c2.0", 1)])
    assert await log.append(decision) == (1,)
    assert await log.last_sequence() == 2


async def test_the_same_decision_again_gives_the_same_sequences(log: Log) -> None:
    """I11, on a batch."""
    decision = [event(A, "c1.0"), event(M, "c1.1"), event(A, "c1.2")]
    assert await log.append(decision) == (1, 2, 3)
    assert await log.append(decision) == (1, 2, 3)
    await log.append([event(A, "c2.0", 3)])
    assert await log.append(decision) == (1, 2, 3)
    assert await log.last_sequence() == 4


async def test_an_event_id_of_an_earlier_decision_is_never_stored_twice(log: Log) -> None:
    """I11: the guards hold, yet the command was decided before."""
    await log.append([event(A, "c1.0")])
    await log.append([event(A, "c2.0", 1), event(B, "c2.1")])
    with pytest.raises(EventIdReused):
        await log.append([event(A, "c1.0", 2)])
    with pytest.raises(EventIdReused):
        await log.append([event(A, "c2.0", 2), event(B, "c2.1", 3)])
    assert await log.last_sequence() == 3


async def test_an_empty_decision_changes_nothing(log: Log) -> None:
    assert await log.append([]) == ()
    assert await log.last_sequence() == 0


async def test_fifty_independent_decisions_at_once_are_all_appended(log: Log) -> None:
    """Grouped into few physical writes, each as if it were alone."""
    decisions = [[event(f"{A}{i}", f"c{i}.0"), event(f"{M}{i}", f"c{i}.1")] for i in range(50)]
    outcomes = await asyncio.gather(*(log.append(decision) for decision in decisions))
    assert sorted(s for outcome in outcomes for s in outcome) == list(range(1, 101))
    stored = {s.sequence: s.event_id for s in await read_all(log)}
    for i, (first, second) in enumerate(outcomes):
        assert second == first + 1
        assert (stored[first], stored[second]) == (f"c{i}.0", f"c{i}.1")


async def test_a_conflict_among_many_at_once_fails_alone(log: Log) -> None:
    await log.append([event(f"{A}7", "before.0")])
    decisions = [[event(f"{A}{i}", f"c{i}.0"), event(f"{M}{i}", f"c{i}.1")] for i in range(20)]
    outcomes = await asyncio.gather(*(log.append(decision) for decision in decisions), return_exceptions=True)
    refused = outcomes.pop(7)
    assert isinstance(refused, SequenceMoved)
    assert (refused.subject, refused.sequence) == (f"{A}7", 1)
    assert all(isinstance(outcome, tuple) for outcome in outcomes)
    assert await log.last_sequence() == 1 + 2 * 19


async def test_of_rival_decisions_at_once_exactly_one_wins(log: Log) -> None:
    outcomes = await asyncio.gather(
        *(log.append([event(A, f"c{i}.0"), event(f"{M}{i}", f"c{i}.1")]) for i in range(10)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [tuple] + [SequenceMoved] * 9
    assert await log.last_sequence() == 2


async def test_single_events_at_once_keep_the_order_they_were_given_in(log: Log) -> None:
    outcomes = await asyncio.gather(*(log.append([event(A, f"c{i}.0", i)]) for i in range(8)))
    assert outcomes == [(i,) for i in range(1, 9)]
    assert [s.event_id for s in await read_all(log)] == [f"c{i}.0" for i in range(8)]


async def test_followers_get_whole_batches_only(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    await log.append([event(A, f"c2.{i}", 1) for i in range(700)])
    await log.append([event(A, f"c3.{i}", 701) for i in range(700)])
    chunks = await read_until(log, 1401)
    assert [s.sequence for chunk in chunks for s in chunk] == list(range(1, 1402))
    assert all(chunk[-1].batch_end for chunk in chunks)
    assert [s.sequence for chunk in chunks for s in chunk if s.batch_end] == [1, 701, 1401]


async def test_a_follower_begins_after_the_sequence_it_names(log: Log) -> None:
    for i in range(5):
        await log.append([event(A, f"c{i}.0", i)])
    chunks = await read_until(log, 5, after=3)
    assert [s.sequence for chunk in chunks for s in chunk] == [4, 5]


async def test_a_follower_of_one_subject_gets_nothing_else(log: Log) -> None:
    """A worker follows its own node."""
    await log.append([event(A, "c1.0"), event(M, "c1.1"), event(A, "c1.2")])
    await log.append([event(f"{A}a", "c2.0"), event(B, "c2.1")])
    await log.append([event(A, "c3.0", 3)])
    chunks = await read_until(log, 6, subject=A)
    assert [s.event_id for chunk in chunks for s in chunk] == ["c1.0", "c1.2", "c3.0"]


async def test_followers_see_what_is_appended_while_they_follow(log: Log) -> None:
    following = asyncio.create_task(read_until(log, 40))
    filtered = asyncio.create_task(read_until(log, 40, subject=B))
    for i in range(20):
        await log.append([event(A, f"c{i}.0", 2 * i - 1 if i else 0), event(B, f"c{i}.1", 2 * i)])
    assert [s.sequence for chunk in await following for s in chunk] == list(range(1, 41))
    assert [s.sequence for chunk in await filtered for s in chunk] == list(range(2, 41, 2))


async def test_a_follower_of_an_empty_log_waits_for_the_first_event(log: Log) -> None:
    following = asyncio.create_task(read_until(log, 1))
    await asyncio.sleep(0.05)
    assert not following.done()
    await log.append([event(A, "c1.0")])
    assert [s.event_id for chunk in await following for s in chunk] == ["c1.0"]


async def test_a_guard_stands_in_the_log_beside_its_event(log: Log) -> None:
    """I10: each event can be proven to follow what its writer had seen."""
    await log.append([event(A, "c1.0")])
    await log.append([event(A, "c2.0", 1), event(B, "c2.1"), event(A, "c2.2", 1)])
    assert [s.guard for s in await read_all(log)] == [0, 1, 0, None]


async def test_reading_where_nothing_is_gives_nothing(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    assert await log.read(2) is None
    assert await log.read(0) is None
    assert await log.read(-1) is None


async def test_an_empty_log_ends_at_zero(log: Log) -> None:
    assert await log.last_sequence() == 0
    assert await log.sequence_at(time.time_ns()) == 0


async def test_a_time_gives_the_last_batch_end_at_or_before_it(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    await asyncio.sleep(0.01)
    await log.append([event(A, "c2.0", 1), event(B, "c2.1"), event(M, "c2.2")])
    await asyncio.sleep(0.01)
    await log.append([event(A, "c3.0", 2)])
    time_of = {s.sequence: s.time_ns for s in await read_all(log)}
    assert await log.sequence_at(time_of[1] - 1) == 0
    assert await log.sequence_at(time_of[1]) == 1
    assert await log.sequence_at(time_of[2] - 1) == 1
    assert await log.sequence_at(time_of[4]) == 4
    for inside in (2, 3):
        assert await log.sequence_at(time_of[inside]) == (4 if time_of[inside] == time_of[4] else 1)
    assert await log.sequence_at(time_of[5] - 1) == 4
    assert await log.sequence_at(time_of[5]) == 5
    assert await log.sequence_at(time_of[5] + 3600 * 10**9) == 5


async def test_a_decision_past_a_limit_is_refused(log: Log) -> None:
    with pytest.raises(DecisionTooLarge):
        await log.append([event(A, f"c1.{i}") for i in range(DECISION_MESSAGES_MAX + 1)])
    with pytest.raises(DecisionTooLarge):
        await log.append([event(A, "c1.0", body=b"x" * (EVENT_BYTES_MAX + 1))])
    with pytest.raises(DecisionTooLarge):
        await log.append([event(A, f"c1.{i}", body=b"x" * EVENT_BYTES_MAX) for i in range(129)])
    assert await log.last_sequence() == 0


async def test_a_decision_at_the_limits_is_taken(log: Log) -> None:
    full = [event(A, f"c1.{i}", body=b"x") for i in range(DECISION_MESSAGES_MAX)]
    assert await log.append(full) == tuple(range(1, DECISION_MESSAGES_MAX + 1))
    assert await log.append([event(B, "c2.0", body=b"x" * EVENT_BYTES_MAX)]) == (DECISION_MESSAGES_MAX + 1,)


async def test_what_cannot_be_an_event_is_refused_before_it_is_sent(log: Log) -> None:
    malformed = [
        event("somewhere.else", "c1.0"),
        event("modelyard.log.", "c1.0"),
        event("modelyard.log.node.*", "c1.0"),
        event("modelyard.log.>", "c1.0"),
        event("modelyard.log.node.a b", "c1.0"),
        event("modelyard.log.node..b", "c1.0"),
        event(A, ""),
        event(A, "c1\r\nNats-Rollup: all"),
        event(A, "x" * 257),
        event(A, "c1.0", -1),
    ]
    for message in malformed:
        with pytest.raises(DecisionMalformed):
            await log.append([message])
    assert await log.last_sequence() == 0


async def test_an_id_twice_in_a_decision_is_refused(log: Log) -> None:
    with pytest.raises(DecisionMalformed):
        await log.append([event(A, "c1.0"), event(B, "c1.0")])


async def test_subjects_are_taken_as_they_are(log: Log) -> None:
    """Names arrive escaped; nothing here changes them."""
    await log.append([event(HARD, "c1.0"), event(M, "c1.1")])
    assert [s.subject for s in await read_all(log)] == [HARD, M]
    assert [s.subject for chunk in await read_until(log, 1, subject=HARD) for s in chunk] == [HARD]


async def test_a_checkpoint_past_the_end_belongs_to_another_log(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """I9: a fold that stands where this log has never been must not go on."""
    monkeypatch.setattr("modelyard_services.effects.log.reader.DOUBT_SECONDS", 0.5)
    await log.append([event(A, "c1.0")])
    with pytest.raises(LogReplaced):
        await read_until(log, 99, after=5)


async def test_a_follower_that_is_left_holds_nothing_up(log: Log) -> None:
    await log.append([event(A, "c1.0")])
    async with aclosing(log.follow(after=0)) as following:
        async for chunk in following:
            assert chunk[0].sequence == 1
            break
    assert await log.append([event(A, "c2.0", 1)]) == (2,)


async def test_a_log_has_an_id(log: Log) -> None:
    assert log.log_id
