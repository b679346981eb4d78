"""Which decisions go into the log together: independent ones, in order, within limits."""

import asyncio
from collections import deque
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from modelyard_services.effects.log.contract import DECISION_BYTES_MAX, DECISION_MESSAGES_MAX
from modelyard_services.effects.log.grouping import GROUP_DECISIONS_MAX, Waiting, take_group, waiting
from tests.contract.decisions import event

SUBJECTS = [f"modelyard.log.node.n{i}" for i in range(6)]


def queued(*decisions: list[str], body: bytes = b"") -> deque[Waiting]:
    """Waiting decisions, each given by its subjects."""

    async def made() -> deque[Waiting]:
        return deque(
            waiting([event(s, f"{i}.{j}", body=body) for j, s in enumerate(d)], essential=False, deadline=0)
            for i, d in enumerate(decisions)
        )

    return asyncio.run(made())


def names(group: list[Waiting]) -> list[int]:
    return [int(one.decision[0].event_id.split(".")[0]) for one in group]


def all_groups(queue: deque[Waiting]) -> list[list[int]]:
    groups = []
    while group := take_group(queue):
        groups.append(names(group))
    return groups


@given(st.lists(st.lists(st.sampled_from(SUBJECTS), min_size=1, max_size=3), max_size=40))
def test_groups_share_no_subject_and_keep_the_order_of_each(decisions: list[list[str]]) -> None:
    groups = all_groups(queued(*decisions))
    assert sorted(chain(*groups)) == list(range(len(decisions)))
    for group in groups:
        subjects = list(chain(*(set(decisions[i]) for i in group)))
        assert len(subjects) == len(set(subjects))
    for subject in SUBJECTS:
        order = [i for i in chain(*groups) if subject in decisions[i]]
        assert order == sorted(order)


def test_a_group_is_bounded_in_decisions_messages_and_bytes() -> None:
    assert [len(g) for g in all_groups(queued(*([f"s{i}"] for i in range(70))))] == [GROUP_DECISIONS_MAX] * 2 + [6]
    half = DECISION_MESSAGES_MAX // 2
    assert all_groups(queued(["a"] * half, ["b"] * half, ["c"])) == [[0, 1], [2]]
    body = b"x" * (DECISION_BYTES_MAX // 2)
    assert all_groups(queued(["a"], ["b"], ["c"], body=body)) == [[0, 1], [2]]


def test_what_nobody_waits_for_any_more_is_not_written() -> None:
    queue = queued(["a"], ["b"], ["c"])
    queue[1].outcome.cancel()
    assert all_groups(queue) == [[0, 2]]


def test_a_hot_subject_does_not_hold_up_the_others() -> None:
    assert all_groups(queued(["hot"], ["hot"], ["a"], ["hot", "b"], ["b"], ["c"])) == [[0, 2, 5], [1], [3], [4]]
