"""The only writer of this process: decisions wait, go into the log in groups, and learn exactly what became of them.

Invariant: one physical write is in flight at a time (and, when a group was refused, its decisions one by one, a few
at once). A decision is answered from what the log holds: never acknowledged without being in it, never refused
while it is.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from modelyard_services.effects.log.api import Api
from modelyard_services.effects.log.contract import LogFailure, LogUnavailable, Message
from modelyard_services.effects.log.grouping import Waiting, take_group, waiting
from modelyard_services.effects.log.headroom import Headroom
from modelyard_services.effects.log.publisher import Definite, Full, Publisher, Sent, Written
from modelyard_services.effects.log.settlement import settle

APPEND_SECONDS_MAX: Final = 15.0
"""From the call to an answer: longer than the election after a killed leader, which servers wait 4 to 9 s to begin."""

WAITING_MAX: Final = 4_096
"""Decisions that may wait in this process: a few seconds of writing. Further callers wait to be let in."""

ALONE_AT_ONCE_MAX: Final = 8
"""Decisions of a refused group tried at the same time; far below the batches a server takes in flight."""

SETTLE_PAUSE_SECONDS: Final = 0.05
"""Before a decision is sent again whose refusal the log's reads don't explain: a leader is changing."""


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
        sent = Sent(min(one.sent.deadline for one in group))
        try:
            outcome = await self._publisher.write([one.decision for one in group], sent)
        except LogFailure as failure:
            for one in group:
                _answer(one, _for_each(failure))
            return []
        if not isinstance(outcome, Written):
            for one in group:
                one.sent.unanswered = sent.unanswered
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
        while True:
            outcome = await self._write_once(one)
            if isinstance(outcome, Written):
                self._headroom.used(one.size, messages=len(one.decision))
                return tuple(range(outcome.last + 1 - len(one.decision), outcome.last + 1))
            sequences = await settle(self._api, one.decision, outcome, unanswered=one.sent.unanswered)
            if sequences is not None:
                return sequences
            one.sent.give_up_in_time()
            await asyncio.sleep(SETTLE_PAUSE_SECONDS)

    async def _write_once(self, one: Waiting) -> Definite:
        if one.essential or self._headroom.has_room_for(one.size):
            return await self._publisher.write([one.decision], one.sent)
        return Full(self._headroom.account)


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
