"""The log in memory: the exact semantics of the real one, for simulations and tests of what stands on it.

Invariant: it passes the same contract suite as JetStream (tests/contract), so nothing can come to rely on a
difference. The stored messages are never changed or removed.
"""

import asyncio
from bisect import bisect_right
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import count
from typing import Final

from modelyard_services.effects.clock import Clock
from modelyard_services.effects.log.contract import (
    HEADROOM_FRACTION,
    EventIdReused,
    LogFull,
    LogReplaced,
    Message,
    SequenceMoved,
    Stored,
)
from modelyard_services.effects.log.decision import check, guards

CHUNK_EVENTS_MAX: Final = 1_000
"""A follower far behind gets the log in steps of about this size, as from a real connection."""

_STORED_OVERHEAD_BYTES: Final = 200
"""Headers and framing of one stored event, about what JetStream's file store needs."""

_CLOCK: Final = Clock()


class MemoryLog:
    """A log that lives as long as this object.

    `clock` is the log's time, in Unix nanoseconds; a simulation gives its own.
    """

    def __init__(
        self, log_id: str = "memory", *, clock: Callable[[], int] = _CLOCK.now_ns, bytes_max: int | None = None
    ) -> None:
        self._log_id = log_id
        self._clock = clock
        self._bytes_max = bytes_max
        self._bytes = 0
        self._stored: list[Stored] = []
        self._times: list[int] = []
        self._last: dict[str, int] = {}
        self._sequence_of: dict[str, int] = {}
        self._grown = asyncio.Event()

    @property
    def log_id(self) -> str:
        return self._log_id

    async def append(self, decision: Sequence[Message], *, essential: bool = False) -> tuple[int, ...]:
        check(decision)
        if not decision:
            return ()
        if (known := self._already_appended(decision)) is not None:
            return known
        self._refuse_moved(decision)
        self._refuse_reused(decision)
        self._refuse_overflow(decision, essential=essential)
        return self._write(decision)

    async def follow(self, *, after: int, subject: str | None = None) -> AsyncGenerator[list[Stored], None]:
        if after > len(self._stored):
            raise LogReplaced(f"the log ends at {len(self._stored)}, before {after}")
        done = after
        while True:
            grown = self._grown
            end = self._chunk_end(done)
            chunk = [s for s in self._stored[done:end] if subject is None or s.subject == subject]
            done = end
            if chunk:
                yield chunk
            if done == len(self._stored):
                await grown.wait()

    async def last_sequence(self) -> int:
        return len(self._stored)

    async def read(self, sequence: int) -> Stored | None:
        return self._stored[sequence - 1] if 1 <= sequence <= len(self._stored) else None

    async def sequence_at(self, time_ns: int) -> int:
        return self._batch_end_before(bisect_right(self._times, time_ns))

    def _already_appended(self, decision: Sequence[Message]) -> tuple[int, ...] | None:
        first = decision[0]
        sequence = self._sequence_of.get(first.event_id)
        if sequence is None or self._stored[sequence - 1].guard != first.expected:
            return None
        stored = self._stored[sequence - 1 : sequence - 1 + len(decision)]
        if [(s.subject, s.event_id) for s in stored] != [(m.subject, m.event_id) for m in decision]:
            return None
        return tuple(s.sequence for s in stored)

    def _refuse_moved(self, decision: Sequence[Message]) -> None:
        for subject, expected in guards(decision).items():
            if (last := self._last.get(subject, 0)) != expected:
                raise SequenceMoved(subject, last)

    def _refuse_reused(self, decision: Sequence[Message]) -> None:
        for message in decision:
            if message.event_id in self._sequence_of:
                raise EventIdReused(message.event_id)

    def _refuse_overflow(self, decision: Sequence[Message], *, essential: bool) -> None:
        if self._bytes_max is None:
            return
        needed = sum(len(message.body) + _STORED_OVERHEAD_BYTES for message in decision)
        ceiling = self._bytes_max if essential else int(self._bytes_max * HEADROOM_FRACTION)
        if self._bytes + needed > ceiling:
            raise LogFull(f"{self._bytes} of {self._bytes_max} bytes are used")
        self._bytes += needed

    def _write(self, decision: Sequence[Message]) -> tuple[int, ...]:
        unguarded = guards(decision)
        now = max(self._clock(), self._times[-1] if self._times else 0)
        for sequence, message in zip(count(len(self._stored) + 1), decision, strict=False):
            self._stored.append(
                Stored(
                    sequence=sequence,
                    time_ns=now,
                    subject=message.subject,
                    event_id=message.event_id,
                    body=message.body,
                    batch_end=message is decision[-1],
                    guard=unguarded.pop(message.subject, None),
                )
            )
            self._times.append(now)
            self._last[message.subject] = sequence
            self._sequence_of[message.event_id] = sequence
        self._tell_followers()
        return tuple(range(len(self._stored) - len(decision) + 1, len(self._stored) + 1))

    def _tell_followers(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()

    def _chunk_end(self, start: int) -> int:
        end = min(start + CHUNK_EVENTS_MAX, len(self._stored))
        while end < len(self._stored) and not self._stored[end - 1].batch_end:
            end += 1
        return end

    def _batch_end_before(self, sequence: int) -> int:
        while sequence and not self._stored[sequence - 1].batch_end:
            sequence -= 1
        return sequence
