"""The only writer of this process: decisions wait, go into the log in groups, and learn exactly what became of them.

Invariant: one physical write is in flight at a time (and, when a group was refused, its decisions one by one, a few
at once). A decision is answered from what the log holds: never acknowledged without being in it, never refused
while it is.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog

from modelyard_services.effects.log.api import Api
from modelyard_services.effects.log.contract import (
    EventIdReused,
    LogFailure,
    LogFull,
    LogUnavailable,
    Message,
    SequenceMoved,
)
from modelyard_services.effects.log.decision import guards
from modelyard_services.effects.log.grouping import Waiting, take_group, waiting
from modelyard_services.effects.log.headroom import Headroom
from modelyard_services.effects.log.publisher import Duplicate, Full, Moved, Publisher, Written

APPEND_SECONDS_MAX: Final = 15.0
"""From the call to an answer: longer than the election after a killed leader, which servers wait 4 to 9 s to begin."""

WAITING_MAX: Final = 4_096
"""Decisions that may wait in this process: a few seconds of writing. Further callers wait to be let in."""

ALONE_AT_ONCE_MAX: Final = 8
"""Decisions of a refused group tried at the same time; far below the batches a server takes in flight."""

SETTLE_TRIES_MAX: Final = 8
"""A server that refuses a guard which its own reads confirm has just changed its mind or its leader."""

SETTLE_PAUSE_SECONDS: Final = 0.05

_log = structlog.get_logger(__name__)


class Appender:
    """Appends to one log."""

    def __init__(self, publisher: Publisher, api: Api, headroom: Headroom) -> None:
        self._publisher = publisher
        self._api = api
        self._headroom = headroom
        self._queue: deque[Waiting] = deque()
        self._room = asyncio.Semaphore(WAITING_MAX)
        self._writer: asyncio.Task[None] | None = None

    async def append(self, decision: Sequence[Message], *, essential: bool) -> tuple[int, ...]:
        """Write `decision` with whatever else is waiting. Fails as `Log.append` does."""
        async with self._room:
            deadline = asyncio.get_running_loop().time() + APPEND_SECONDS_MAX
            one = waiting(decision, essential=essential, deadline=deadline)
            self._queue.append(one)
            if self._writer is None or self._writer.done():
                self._writer = asyncio.create_task(self._write_all(), name="log-appender")
            return await one.outcome

    async def close(self) -> None:
        """Let what waits be written, then stop."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def _write_all(self) -> None:
        while group := take_group(self._queue):
            try:
                await self._write_group(group)
            except BaseException as error:
                for one in group:
                    _answer(one, LogUnavailable(f"the appender stopped: {error!r}", nothing_written=False))
                raise

    async def _write_group(self, group: list[Waiting]) -> None:
        await self._headroom.refresh(sum(one.size for one in group))
        candidates = [one for one in group if one.essential or self._headroom.has_room_for(one.size)]
        # What has no room may yet be a repetition of what is in the log: settled one by one.
        apart = [one for one in group if one not in candidates]
        if len(candidates) > 1:
            apart += await self._write_together(candidates)
        else:
            apart += candidates
        alone = asyncio.Semaphore(ALONE_AT_ONCE_MAX)
        await asyncio.gather(*(self._write_alone(one, alone) for one in apart))

    async def _write_together(self, group: list[Waiting]) -> list[Waiting]:
        """Write `group` as one batch; returns those that must be tried alone."""
        try:
            outcome = await self._publisher.write(
                [one.decision for one in group], deadline=min(one.deadline for one in group)
            )
        except LogFailure as failure:
            for one in group:
                _answer(one, _for_each(failure))
            return []
        if not isinstance(outcome, Written):
            return group
        first = outcome.last + 1 - sum(len(one.decision) for one in group)
        for one in group:
            _answer(one, tuple(range(first, first + len(one.decision))))
            first += len(one.decision)
            self._headroom.used(one.size, messages=len(one.decision))
        return []

    async def _write_alone(self, one: Waiting, turn: asyncio.Semaphore) -> None:
        async with turn:
            if one.outcome.done():
                return
            try:
                _answer(one, await self._written_alone(one))
            except LogFailure as failure:
                _answer(one, failure)

    async def _written_alone(self, one: Waiting) -> tuple[int, ...]:
        for _ in range(SETTLE_TRIES_MAX):
            outcome: Written | Moved | Duplicate | Full
            if one.essential or self._headroom.has_room_for(one.size):
                outcome = await self._publisher.write([one.decision], deadline=one.deadline)
            else:
                outcome = Full(self._headroom.account)
            if isinstance(outcome, Written):
                self._headroom.used(one.size, messages=len(one.decision))
                return tuple(range(outcome.last + 1 - len(one.decision), outcome.last + 1))
            if (sequences := await self._settled(one.decision, outcome)) is not None:
                return sequences
            await asyncio.sleep(SETTLE_PAUSE_SECONDS)
        raise SequenceMoved(one.decision[0].subject, None)

    async def _settled(self, decision: Sequence[Message], outcome: Moved | Duplicate | Full) -> tuple[int, ...] | None:
        """What a refusal means, judged by what the log holds; None if the log contradicts it: then try again."""
        if (sequences := await self._in_the_log(decision)) is not None:
            return sequences
        await self._refuse_moved(decision, outcome)
        match outcome:
            case Duplicate():
                raise EventIdReused(decision[0].event_id)
            case Full():
                raise LogFull(outcome.text)
            case Moved():
                return None

    async def _in_the_log(self, decision: Sequence[Message]) -> tuple[int, ...] | None:
        """The sequences of `decision` if it is in the log: if so, its first event is the next after its guard."""
        first, last = decision[0], decision[-1]
        found = await self._api.next_on(first.subject, first.expected + 1)
        if found is None or found.event_id != first.event_id:
            return None
        end = found.sequence + len(decision) - 1
        stored = found if last is first else await self._api.get(end)
        if stored is None or (stored.subject, stored.event_id) != (last.subject, last.event_id):
            return None
        return tuple(range(found.sequence, end + 1))

    async def _refuse_moved(self, decision: Sequence[Message], outcome: Moved | Duplicate | Full) -> None:
        expected_of = guards(decision)
        if len(expected_of) == 1 and isinstance(outcome, Moved) and outcome.sequence is not None:
            raise SequenceMoved(decision[0].subject, outcome.sequence)
        for subject, expected in expected_of.items():
            newest = await self._api.last_on(subject)
            sequence = 0 if newest is None else newest.sequence
            if sequence != expected:
                raise SequenceMoved(subject, sequence)


def _answer(one: Waiting, outcome: tuple[int, ...] | LogFailure) -> None:
    if one.outcome.done():
        return
    if isinstance(outcome, LogFailure):
        one.outcome.set_exception(outcome)
    else:
        one.outcome.set_result(outcome)


def _for_each(failure: LogFailure) -> LogFailure:
    """An exception of its own for each waiter: a shared one would gather all their tracebacks."""
    if isinstance(failure, LogUnavailable):
        return LogUnavailable(failure.problem, nothing_written=failure.nothing_written)
    return type(failure)(failure.detail)
