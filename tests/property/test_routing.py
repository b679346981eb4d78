"""The ranking is the definition: any history of requests, reports and shut replicas gives the same choice."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from modelyard_events.ids import ModelName, NodeName, ReplicaId, Revision
from modelyard_events.replica import Process
from modelyard_services.policy.routing import Candidate, Ranking, choose

REPLICAS = st.integers(min_value=0, max_value=7)


def a_candidate(number: int, *, vram_free: int = 0, max_concurrency: int | None = None) -> Candidate:
    """Replicas 2k and 2k+1 share a node, so that every part of a rank decides somewhere."""
    return Candidate(
        replica=ReplicaId(f"r-{number}"),
        node=NodeName(f"n{number // 2}"),
        model=ModelName("m"),
        replica_index=number % 2,
        address=f"127.0.0.1:{9_000 + number}",
        revision=Revision("a"),
        process=Process(pid=number, started_at=1.0, port=9_000 + number),
        vram_free=vram_free,
        max_concurrency=max_concurrency,
    )


class RankingIsTheDefinition(RuleBasedStateMachine):
    """T1."""

    def __init__(self) -> None:
        super().__init__()
        self.ranking = Ranking()
        self.candidates: dict[ReplicaId, Candidate] = {}
        self.now_ns = 0

    @rule(
        number=REPLICAS,
        vram_free=st.integers(min_value=-2, max_value=2),
        limit=st.none() | st.integers(min_value=1, max_value=3),
    )
    def appears(self, number: int, vram_free: int, limit: int | None) -> None:
        candidate = a_candidate(number, vram_free=vram_free, max_concurrency=limit)
        self.candidates[candidate.replica] = candidate
        self.ranking.put(candidate)

    @rule(number=REPLICAS)
    def ends(self, number: int) -> None:
        replica = ReplicaId(f"r-{number}")
        self.candidates.pop(replica, None)
        self.ranking.drop(replica)

    @rule(later=st.integers(min_value=0, max_value=1))
    def is_taken(self, later: int) -> None:
        candidate = self.ranking.best()
        if candidate is not None:
            self.now_ns += later
            candidate.own += 1
            candidate.last_used_ns = self.now_ns
            self.ranking.moved(candidate)

    @rule(number=REPLICAS, others=st.integers(min_value=0, max_value=3), vram_free=st.integers(-2, 2))
    def is_told_of(self, number: int, others: int, vram_free: int) -> None:
        candidate = self.ranking.get(ReplicaId(f"r-{number}"))
        if candidate is not None:
            candidate.others, candidate.vram_free = others, vram_free
            self.ranking.moved(candidate)

    @rule(number=REPLICAS)
    def is_given_back(self, number: int) -> None:
        candidate = self.ranking.get(ReplicaId(f"r-{number}"))
        if candidate is not None and candidate.own:
            candidate.own -= 1
            self.ranking.moved(candidate)

    @rule(number=REPLICAS, shut=st.booleans())
    def is_shut(self, number: int, shut: bool) -> None:  # noqa: FBT001 - a drawn value
        candidate = self.ranking.get(ReplicaId(f"r-{number}"))
        if candidate is not None:
            candidate.shut = shut

    @invariant()
    def both_choose_the_same(self) -> None:
        assert self.ranking.best() is choose(self.candidates.values())
        avoid = {ReplicaId("r-0"), ReplicaId("r-3")}
        assert self.ranking.best(avoid) is choose(self.candidates.values(), avoid=avoid)
        assert len(self.ranking) == len(self.candidates)


TestRankingIsTheDefinition = RankingIsTheDefinition.TestCase
TestRankingIsTheDefinition.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
