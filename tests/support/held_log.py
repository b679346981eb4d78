"""A log of which a follower sees the beginning, and the rest only when the test says so."""

import asyncio
from collections.abc import AsyncGenerator

from modelyard_services.effects.log.contract import Log, Stored


class HeldLog:
    """Follows `log` up to sequence `until`; then, once released, what there is by then at once, then the rest.

    With `first`, what comes before the release ends there already.
    """

    def __init__(self, log: Log, until: int, *, first: int | None = None) -> None:
        self._log = log
        self._until = until
        self._first = until if first is None else first
        self._released = asyncio.Event()
        self.followed = asyncio.Event()
        self.log_id = log.log_id
        self.append, self.read, self.sequence_at = log.append, log.read, log.sequence_at

    def release(self) -> None:
        self._released.set()

    async def last_sequence(self) -> int:
        return self._until

    async def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        assert subject is None
        self.followed.set()
        if after < self._first:
            yield await self._between(after, self._first)
        await self._released.wait()
        last = await self._log.last_sequence() if self._first == self._until else self._until
        yield await self._between(max(after, self._first), last)
        async for chunk in self._log.follow(after=last):
            yield chunk

    async def _between(self, after: int, last: int) -> list[Stored]:
        found = [await self._log.read(sequence) for sequence in range(after + 1, last + 1)]
        return [one for one in found if one is not None]
