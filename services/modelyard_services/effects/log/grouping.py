"""Which waiting decisions go into the log together.

Invariant: no two decisions of a group share a subject, so each guard means the same as if it were alone; and no
decision overtakes an earlier one that shares a subject with it.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from modelyard_services.effects.log.contract import DECISION_BYTES_MAX, DECISION_MESSAGES_MAX, Message
from modelyard_services.effects.log.decision import body_bytes
from modelyard_services.effects.log.publisher import Sent

GROUP_DECISIONS_MAX: Final = 32
"""More gains little, and each must be tried alone when one guard of the group fails."""

LOOK_AHEAD_MAX: Final = 256
"""Waiting decisions looked at for one group: with one hot subject the search would otherwise be quadratic."""


class Waiting(Struct, eq=False):
    """A decision on its way.

    Attributes:
        decision: its events.
        subjects: of its events.
        size: bytes of its bodies.
        essential: a fact or an end, taken even when the log is nearly full.
        sent: what is known about its sends so far.
        outcome: its sequences, or why not.
    """

    decision: Sequence[Message]
    subjects: frozenset[str]
    size: int
    essential: bool
    sent: Sent
    outcome: asyncio.Future[tuple[int, ...]]


def waiting(decision: Sequence[Message], *, essential: bool, deadline: float) -> Waiting:
    """`decision`, ready to wait for its group."""
    return Waiting(
        decision=decision,
        subjects=frozenset(message.subject for message in decision),
        size=body_bytes(decision),
        essential=essential,
        sent=Sent(deadline),
        outcome=asyncio.get_running_loop().create_future(),
    )


def take_group(queue: deque[Waiting]) -> list[Waiting]:
    """Take the next group off `queue`, oldest first; what nobody waits for any more is dropped."""
    group: list[Waiting] = []
    passed_over: deque[Waiting] = deque()
    taken_subjects: set[str] = set()
    messages = size = looked_at = 0
    while queue and len(group) < GROUP_DECISIONS_MAX and looked_at < LOOK_AHEAD_MAX:
        one = queue.popleft()
        looked_at += 1
        if one.outcome.done():
            continue
        fits = messages + len(one.decision) <= DECISION_MESSAGES_MAX and size + one.size <= DECISION_BYTES_MAX
        if fits and taken_subjects.isdisjoint(one.subjects):
            group.append(one)
            messages += len(one.decision)
            size += one.size
        else:
            passed_over.append(one)
        taken_subjects |= one.subjects
    queue.extendleft(reversed(passed_over))
    return group
