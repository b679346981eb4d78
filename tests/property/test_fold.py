"""The fold of any history: the same everywhere, however it was reached (I9)."""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_events.envelope import Recorded
from modelyard_projections.fleet import Fleet
from modelyard_projections.hashing import Changes, StateHash, hash_of_rows
from modelyard_projections.history import mentions, mentions_from
from modelyard_projections.homes import Homes
from modelyard_projections.rows import ROW_TYPES
from tests.support.histories import Historian, decoded, stored

BATCHES_MAX = 60


@st.composite
def histories(draw: st.DrawFn) -> list[list[Recorded]]:
    historian = Historian(lambda options: draw(st.sampled_from(options)))
    return [historian.batch() for _ in range(draw(st.integers(1, BATCHES_MAX)))]


def folded(batches: list[list[Recorded]]) -> Fleet:
    fleet = Fleet()
    for batch in batches:
        fleet.apply_all(batch)
    return fleet


@settings(deadline=None, max_examples=50)
@given(histories())
def test_a_replay_from_the_logs_bytes_gives_the_same_fleet(batches: list[list[Recorded]]) -> None:
    replayed = Fleet()
    replayed.apply_all(decoded(one) for batch in batches for one in stored(batch))
    live = folded(batches)
    assert msgspec.to_builtins(replayed) == msgspec.to_builtins(live)
    assert StateHash.of(replayed).text == StateHash.of(live).text


@settings(deadline=None, max_examples=50)
@given(histories())
def test_a_snapshot_taken_anywhere_goes_on_as_if_never_taken(batches: list[list[Recorded]]) -> None:
    half = len(batches) // 2
    snapshot = msgspec.msgpack.encode(folded(batches[:half]))
    restored = msgspec.msgpack.decode(snapshot, type=Fleet)
    for batch in batches[half:]:
        restored.apply_all(batch)
    assert restored == folded(batches)
    assert StateHash.of(restored).text == StateHash.of(folded(batches)).text


@settings(deadline=None, max_examples=50)
@given(histories())
def test_what_an_event_touches_is_all_that_it_changes(batches: list[list[Recorded]]) -> None:
    fleet = Fleet()
    kept = StateHash.of(fleet)
    for batch in batches:
        fleet.apply_all(batch)
        kept.update(fleet, fleet.take_touched())
        assert kept.text == StateHash.of(fleet).text


@settings(deadline=None, max_examples=50)
@given(histories())
def test_the_changes_alone_rebuild_every_row(batches: list[list[Recorded]]) -> None:
    fleet, kept, table = Fleet(), StateHash(), _Rows()
    table.take(kept.update(fleet, [("settings", "settings")]))
    for batch in batches:
        fleet.apply_all(batch)
        table.take(kept.update(fleet, fleet.take_touched()))
    assert table.hash == kept.text


class _Rows:
    """What a database would hold: rows as JSON by table and key."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, tuple[str, ...]], bytes] = {}

    def take(self, changes: Changes) -> None:
        for table, keys in changes.vanished.items():
            for key in keys:
                del self._rows[table, key]
        for table, bodies in changes.changed.items():
            for body in bodies:
                row = msgspec.json.decode(body, type=ROW_TYPES[table])
                self._rows[table, row.identity] = body

    @property
    def hash(self) -> str:
        return hash_of_rows(msgspec.json.decode(body, type=ROW_TYPES[table]) for (table, _), body in self._rows.items())


@settings(deadline=None, max_examples=25)
@given(histories(), st.integers(0, 3))
def test_an_event_told_later_concerns_the_entities_it_concerned_then(batches: list[list[Recorded]], kept: int) -> None:
    """H1: as long as the end of its replicas is remembered."""
    fleet, homes, few = Fleet(), Homes(), Homes(ended_max=kept)
    told = []
    for recorded in (one for batch in batches for one in batch):
        told.append((recorded, mentions(recorded, fleet)))
        assert mentions_from(recorded, homes) == mentions(recorded, fleet)
        for known in (fleet, homes, few):
            known.apply(recorded)
    assert [mentions_from(recorded, homes) for recorded, _then in told] == [then for _recorded, then in told]
    for recorded, then in told:
        assert recorded.sequence <= few.complete_since or mentions_from(recorded, few) == then
