"""T3, X13: what belongs together goes to one replica while that costs nobody a wait."""

from collections import Counter

import pytest

from modelyard_events.fleet import Settings
from modelyard_events.ids import ModelName, NodeName, ReplicaId, Revision
from modelyard_events.replica import Process
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.affinity import (
    HOLDERS_MAX,
    Affinities,
    Affinity,
    Hint,
    Pick,
    Prefixes,
    Ring,
    blocks_of,
    hint_for,
)
from modelyard_services.policy.routing import Candidate, Ranking

M = ModelName("m")
DEFAULTS = Settings()
BLOCK_BYTES = DEFAULTS.affinity_block_bytes


def a_replica(number: int) -> Candidate:
    """Four replicas to a node."""
    return Candidate(
        replica=ReplicaId(f"r-{number}"),
        node=NodeName(f"n{number // 4}"),
        model=M,
        replica_index=number % 4,
        address="127.0.0.1:1",
        revision=Revision("a"),
        process=Process(pid=1, started_at=1.0, port=1),
        vram_free=0,
    )


class Yard:
    """A model's replicas; requests take one and keep it."""

    def __init__(self, affinity: Affinity, replicas: int) -> None:
        self.affinity = affinity
        self.fleet = Fleet()
        self.affinities = Affinities(self.fleet)
        self.ranking = Ranking()
        for number in range(replicas):
            self.ranking.put(a_replica(number))

    def ask(self, hint: Hint, *, keep: bool = False) -> Pick:
        pick = self.affinities.pick(M, self.affinity, self.ranking, hint=hint)
        assert pick is not None
        self.affinities.learn(pick)
        pick.candidate.last_used_ns += 1
        self.busy(pick.candidate.replica, pick.candidate.own + keep)
        return pick

    def busy(self, replica: str, requests: int) -> None:
        candidate = self.ranking.get(ReplicaId(replica))
        assert candidate is not None
        candidate.own = requests
        self.ranking.moved(candidate)


def of_session(name: str) -> Hint:
    return Hint(session=name.encode())


def of_prompt(*blocks: str, rest: str = "") -> Hint:
    return Hint(prompt="".join(block * BLOCK_BYTES for block in blocks).encode() + rest.encode())


def test_sessions_spread_over_all_replicas_of_all_nodes_and_each_stays_where_it_is() -> None:
    """T3, X13: 800 sessions on eight replicas, four to a node."""
    yard = Yard("session", 8)
    first = {name: yard.ask(of_session(name)).candidate.replica for name in map(str, range(800))}
    shares = Counter(first.values())
    assert len(shares) == 8
    assert min(shares.values()) >= 50
    assert all(yard.ask(of_session(name)).candidate.replica == replica for name, replica in first.items())


def test_prompts_that_begin_differently_spread_over_all_replicas() -> None:
    """T3, X13."""
    yard = Yard("prefix", 8)
    hints = [Hint(prompt=f"{number}: ".encode() * BLOCK_BYTES) for number in range(80)]
    first = [yard.ask(hint).candidate.replica for hint in hints]
    assert Counter(first) == {f"r-{number}": 10 for number in range(8)}
    assert [yard.ask(hint).candidate.replica for hint in hints] == first


def test_a_replica_that_comes_takes_its_share_of_sessions_and_moves_no_others() -> None:
    yard = Yard("session", 7)
    names = [str(number) for number in range(400)]
    before = {name: yard.ask(of_session(name)).candidate.replica for name in names}
    yard.ranking.put(a_replica(7))
    yard.affinities.came(M, ReplicaId("r-7"))
    after = {name: yard.ask(of_session(name)).candidate.replica for name in names}
    moved = {name for name in names if before[name] != after[name]}
    assert {after[name] for name in moved} == {"r-7"}
    assert 20 <= len(moved) <= 100
    yard.ranking.drop(ReplicaId("r-7"))
    yard.affinities.went(M, ReplicaId("r-7"))
    assert {name: yard.ask(of_session(name)).candidate.replica for name in names} == before


@pytest.mark.parametrize(
    ("least", "own", "stays"), [(0, 1, True), (0, 2, False), (1, 2, True), (1, 3, False), (4, 6, True), (4, 7, False)]
)
def test_a_session_leaves_a_replica_that_is_much_busier_than_the_least_busy(least: int, own: int, stays: bool) -> None:  # noqa: FBT001 - a column of the table
    """T3: at most two more, and at most one and a half times as many plus one."""
    yard = Yard("session", 3)
    home = yard.ask(of_session("s")).candidate.replica
    for candidate in list(yard.ranking):
        yard.busy(candidate.replica, own if candidate.replica == home else least)
    pick = yard.ask(of_session("s"))
    assert (pick.candidate.replica == home) is stays
    assert pick.choice.rule == "session"
    assert home in pick.choice.why or stays


def test_a_session_whose_replica_is_busy_always_goes_on_to_the_same_next_one() -> None:
    """T3: its second home is warm as well."""
    yard = Yard("session", 8)
    home = yard.ask(of_session("s")).candidate.replica
    yard.busy(home, 9)
    seconds = {yard.ask(of_session("s")).candidate.replica for _ in range(10)}
    assert len(seconds) == 1
    assert home not in seconds


def test_a_prompt_goes_where_most_of_its_beginning_was_seen() -> None:
    """T3."""
    yard = Yard("prefix", 4)
    short = yard.ask(of_prompt("a", "b")).candidate.replica
    yard.busy(short, 1)
    longer = yard.affinities.pick(M, "prefix", yard.ranking, hint=of_prompt("a", "b", "c", "d"))
    assert longer is not None
    assert (longer.candidate.replica, longer.choice.rule) == (short, "prefix")
    assert "2 of the prompt's 4 blocks" in longer.choice.why


def test_a_beginning_that_is_less_than_three_tenths_of_a_prompt_binds_it_to_nobody() -> None:
    """T3: 1 of 4 blocks, then 1 of 3."""
    yard = Yard("prefix", 4)
    home = yard.ask(of_prompt("a")).candidate.replica
    yard.busy(home, 1)
    other = yard.affinities.pick(M, "prefix", yard.ranking, hint=of_prompt("a", "x", "y", "z"))
    assert other is not None
    assert other.choice.rule == "least_busy"
    pick = yard.ask(of_prompt("a", "u", "v"))
    assert (pick.candidate.replica, pick.choice.rule) == (home, "prefix")


def test_the_same_block_later_in_a_prompt_is_another_one() -> None:
    """T3: blocks are chained, for a cache holds beginnings."""
    assert len(set(blocks_of(M, b"a" * BLOCK_BYTES * 3, DEFAULTS))) == 3
    assert blocks_of(M, b"a" * BLOCK_BYTES, DEFAULTS) != blocks_of(ModelName("other"), b"a" * BLOCK_BYTES, DEFAULTS)


def test_a_prompt_counts_in_whole_blocks_and_only_its_first_sixteen_kib() -> None:
    """T3."""
    assert blocks_of(M, b"a" * (BLOCK_BYTES - 1), DEFAULTS) == ()
    assert len(blocks_of(M, b"a" * BLOCK_BYTES * 100, DEFAULTS)) == DEFAULTS.affinity_blocks_max
    assert Yard("prefix", 2).ask(of_prompt(rest="hello")).choice.rule == "least_busy"


def test_a_busy_replica_lets_go_of_its_prompts_and_another_learns_them() -> None:
    """T3."""
    yard = Yard("prefix", 2)
    home = yard.ask(of_prompt("a", "b")).candidate.replica
    yard.busy(home, 5)
    other = yard.ask(of_prompt("a", "b"))
    assert (other.candidate.replica != home, other.choice.rule) == (True, "least_busy")
    assert yard.ask(of_prompt("a", "b")).choice.rule == "prefix"


@pytest.mark.parametrize("affinity", ["session", "prefix"])
def test_all_requests_of_one_session_or_prompt_at_once_still_use_every_replica(affinity: Affinity) -> None:
    """T3, X13: affinity builds no queue where there is room."""
    yard = Yard(affinity, 4)
    hint = Hint(session=b"s", prompt=b"p" * 1_024)
    taken = Counter(yard.ask(hint, keep=True).candidate.replica for _ in range(40))
    assert len(taken) == 4
    assert max(taken.values()) - min(taken.values()) <= 3


def test_without_a_schedule_that_asks_nothing_belongs_together() -> None:
    """T3."""
    yard = Yard("none", 4)
    taken = [yard.ask(of_session("s"), keep=True) for _ in range(4)]
    assert len({pick.candidate.replica for pick in taken}) == 4
    assert {pick.choice.rule for pick in taken} == {"least_busy"}


def test_what_is_remembered_of_prompts_is_bounded() -> None:
    prefixes = Prefixes(blocks_max=10)
    for number in range(50):
        prefixes.learn([b"shared", b"%d" % number], ReplicaId(f"r-{number}"))
    assert len(prefixes) == 10
    assert list(prefixes.holders(b"shared")) == [f"r-{number}" for number in range(50 - HOLDERS_MAX, 50)]
    assert not list(prefixes.holders(b"0"))


def test_a_replica_alone_has_every_session() -> None:
    assert list(Ring([ReplicaId("r-1")]).walk(b"s")) == ["r-1"]
    assert list(Ring().walk(b"s")) == []


def test_a_request_that_says_nothing_of_itself_has_no_hint() -> None:
    assert hint_for("", None) is None
    assert hint_for("s", "") == Hint(session=b"s")
