"""Affinity told in its plainest form: any replicas, loads and requests give the same choice as the index does."""

from hashlib import blake2b

from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard_events.fleet import Settings
from modelyard_events.ids import ModelName, ReplicaId
from modelyard_services.policy.affinity import (
    Prefixes,
    Ring,
    blocks_of,
    by_prefix,
    by_session,
    points_of,
    tolerable,
)
from modelyard_services.policy.routing import Candidate, Ranking, choose, rank
from tests.property.test_routing import a_candidate

M = ModelName("m")
NUMBERS = st.sets(st.integers(min_value=0, max_value=11), max_size=8)
LOADS = st.lists(st.integers(min_value=0, max_value=6), min_size=12, max_size=12)
KEYS = st.binary(min_size=1, max_size=8)
CHOSEN = st.builds(
    Settings,
    affinity_match_share=st.sampled_from((0.0, 0.3, 1.0)),
    affinity_slack=st.integers(0, 4),
    affinity_slack_factor=st.sampled_from((1.0, 1.5, 3.0)),
    affinity_slack_base=st.integers(0, 3),
)
"""What operators may have chosen instead of the rule's figures."""


def ranked(numbers: set[int], loads: list[int], shut: set[int]) -> tuple[Ranking, list[Candidate]]:
    ranking, candidates = Ranking(), []
    for number in sorted(numbers):
        candidate = a_candidate(number)
        candidate.own, candidate.shut = loads[number], number in shut
        ranking.put(candidate)
        candidates.append(candidate)
    return ranking, candidates


def order_of(key: bytes, replicas: set[ReplicaId]) -> list[ReplicaId]:
    """The ring as it is told: all points in a circle, from the key's own on."""
    mine = _number_of(key)
    points = sorted(point for replica in replicas for point in points_of(replica))
    circle = [point for point in points if point[0] >= mine] + [point for point in points if point[0] < mine]
    return list(dict.fromkeys(replica for _point, replica in circle))


def _number_of(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


@given(history=st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=20), key=KEYS)
@settings(max_examples=100, deadline=None)
def test_a_ring_kept_up_to_date_is_the_ring_of_its_replicas(history: list[tuple[bool, int]], key: bytes) -> None:
    """T3."""
    ring, there = Ring(), set[ReplicaId]()
    for comes, number in history:
        replica = ReplicaId(f"r-{number}")
        if comes and replica not in there:
            ring.put(replica)
            there.add(replica)
        elif not comes and replica in there:
            ring.drop(replica)
            there.remove(replica)
    assert list(ring.walk(key)) == list(Ring(there).walk(key)) == order_of(key, there)


@given(numbers=NUMBERS, loads=LOADS, shut=NUMBERS, avoided=NUMBERS, key=KEYS, chosen=CHOSEN)
@settings(max_examples=200, deadline=None)
def test_a_session_goes_to_the_first_in_its_order_that_is_not_too_busy(
    numbers: set[int], loads: list[int], shut: set[int], avoided: set[int], key: bytes, chosen: Settings
) -> None:
    """T3."""
    ranking, candidates = ranked(numbers, loads, shut)
    avoid = {ReplicaId(f"r-{number}") for number in avoided}
    pick = by_session(ranking, Ring(candidate.replica for candidate in candidates), key, settings=chosen, avoid=avoid)
    least = choose(candidates, avoid=avoid)
    if least is None:
        assert pick is None
        return
    by_id = {candidate.replica: candidate for candidate in candidates}
    fit = [
        replica
        for replica in order_of(key, set(by_id))
        if replica not in avoid and tolerable(by_id[replica], least, chosen)
    ]
    assert pick is not None
    assert pick.candidate.replica == fit[0]


@given(
    numbers=NUMBERS,
    loads=LOADS,
    shut=NUMBERS,
    avoided=NUMBERS,
    asked=st.tuples(
        st.lists(st.tuples(st.integers(0, 11), st.text(alphabet="ab", min_size=1, max_size=6)), max_size=12),
        st.text(alphabet="ab", max_size=6),
        CHOSEN,
    ),
)
@settings(max_examples=200, deadline=None)
def test_a_prompt_goes_to_whoever_saw_most_of_it_and_is_not_too_busy(
    numbers: set[int],
    loads: list[int],
    shut: set[int],
    avoided: set[int],
    asked: tuple[list[tuple[int, str]], str, Settings],
) -> None:
    """T3: each letter is a block."""
    (seen, prompt, chosen), (ranking, candidates) = asked, ranked(numbers, loads, shut)
    avoid = {ReplicaId(f"r-{number}") for number in avoided}
    prefixes = Prefixes()
    for number, text in seen:
        prefixes.learn(_blocks(text), ReplicaId(f"r-{number}"))
    pick = by_prefix(ranking, prefixes, _blocks(prompt), settings=chosen, avoid=avoid)
    least = choose(candidates, avoid=avoid)
    if least is None:
        assert pick is None
        return

    def matched(candidate: Candidate) -> int:
        texts = [text for number, text in seen if candidate.replica == f"r-{number}"]
        return max((_alike(text, prompt) for text in texts), default=0)

    fit = [
        candidate
        for candidate in candidates
        if candidate.replica not in avoid
        and tolerable(candidate, least, chosen)
        and matched(candidate)
        and matched(candidate) >= chosen.affinity_match_share * len(prompt)
    ]
    wanted = min(fit, key=lambda candidate: (-matched(candidate), rank(candidate)), default=least)
    assert pick is not None
    assert pick.candidate is wanted
    assert pick.choice.rule == ("prefix" if fit else "least_busy")


def _blocks(text: str) -> tuple[bytes, ...]:
    return blocks_of(M, "".join(letter * 256 for letter in text).encode(), Settings())


def _alike(one: str, other: str) -> int:
    count = 0
    while count < min(len(one), len(other)) and one[count] == other[count]:
        count += 1
    return count
