"""By which one of several processes acts, and the others stand by (rule C1).

```
standing by ── free, or unrenewed for its time ──▶ compare-and-set ──▶ active ── renewed ──┐
     ▲                                                                  │  ▲               │
     │◀── moved: somebody else has it · not renewed until the fence ────┘  └───────────────┘
     └◀── released at a stop: the next one begins at once
```

Nobody's wall clock is compared with another's. Who stands by counts from when *it* saw a revision first, which is
after that was written; who is active counts from before it *sent* its last renewal that was answered, and stops a
margin earlier. So, with monotonic clocks of one pace, the first has stopped before the second may begin.
Invariant: a lease only says who acts. A machine that is frozen between the look at its lease and the append can't be
held back by any lease; what keeps that harmless is the guard of the append (I10), never this.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.effects.lease.cell import Cell, Kept
from modelyard_services.effects.lease.claim import FREE, Claim, read_claim
from modelyard_services.errors import UnavailableError

RENEWALS: Final = 5
"""Renewals in the time of a lease: three may be lost in a row before its holder has to stop."""

MARGIN: Final = 1 / 5
"""The part of its time that the holder leaves unused: room for clocks that don't run alike and for what it began."""

RELEASE_SECONDS: Final = 2.0
"""How long a stop is held up by giving the lease back; after this it runs out by itself."""

CONTENDED_SECONDS: Final = 0.05
"""Before another look when somebody else's write was faster."""

HEARD_SECONDS: Final = 0.02
"""From hearing that a lease is released to looking: the stream takes a moment to store what was said."""

_log = structlog.get_logger(__name__)


class Seen(msgspec.Struct, frozen=True):
    """What somebody else claims, and since when it has stood there unrenewed, on our monotonic clock."""

    revision: int
    claim: Claim
    since_ns: int


class Lease:
    """One process's part in one lease. `cell` gives the cell; UnavailableError while NATS is away."""

    def __init__(self, cell: Callable[[], Cell], *, holder: str, seconds: float, clock: Clock) -> None:
        self.holder = holder
        self._cell = cell
        self._seconds = seconds
        self._clock = clock
        self._own: int | None = None
        self._until_ns = 0
        self._since_ns = 0
        self._terms = 0
        self._told: int | None = None
        self._unanswered = False
        self._seen: Seen | None = None
        self._problem: str | None = "not looked at yet"
        self._taken: list[Callable[[], None]] = []
        self._heard = asyncio.Event()

    @property
    def term(self) -> int | None:
        """The number of this time of being active, from 1; None while this process mustn't act.

        Two looks that give the same number have an unbroken lease between them.
        """
        return self._terms if self._clock.monotonic_ns() < self._until_ns else None

    @property
    def terms(self) -> int:
        """How many times this process became active."""
        return self._terms

    @property
    def active(self) -> str | None:
        """Who has it as far as is known here; None where nobody does, or nobody could be asked."""
        if self.term is not None:
            return self.holder
        return self._seen.claim.holder if self._seen is not None and self._problem is None else None

    @property
    def problem(self) -> str | None:
        """Why this process neither acts nor knows who does; None otherwise."""
        return self._problem if self.term is None else None

    def on_taken(self, callback: Callable[[], None]) -> None:
        """Call `callback()` whenever this process becomes active."""
        self._taken.append(callback)

    def hear(self, body: bytes) -> None:
        """Somebody wrote `body`, or tried to: look at once if that sets the lease free."""
        if self._own is None and read_claim(body).holder is None:
            self._heard.set()

    async def keep(self) -> None:
        """Take it as soon as it is to be had and renew it, until cancelled."""
        while True:
            await self._wait(await self.turn())

    async def turn(self) -> float:
        """One look or renewal; the seconds until the next."""
        try:
            pause = await (self._stand_by() if self._own is None else self._renew(self._own))
        except UnavailableError as away:
            self._problem, pause = away.detail, self._pace
        else:
            self._problem = None
        self._tell()
        return pause

    async def release(self) -> None:
        """Stop, and let the next one begin at once."""
        self._until_ns, self._told = 0, None
        try:
            async with asyncio.timeout(RELEASE_SECONDS):
                if self._unanswered:
                    # What was on its way when the stop came may have made it ours.
                    await self._look()
                while self._own is not None:
                    await self._let_go(self._own)
        except (UnavailableError, TimeoutError) as away:
            _log.warning("lease not released", holder=self.holder, runs_out_seconds=self._seconds, problem=str(away))

    @property
    def _pace(self) -> float:
        return self._seconds / RENEWALS

    async def _renew(self, revision: int) -> float:
        if await self._claim(revision):
            return self._pace
        # Perhaps by a renewal of our own whose answer was lost: that keeps the lease, and prolongs nothing.
        await self._look()
        return 0.0

    async def _stand_by(self) -> float:
        seen = await self._look()
        if self._own is not None:
            return 0.0
        waited_ns = self._clock.monotonic_ns() - seen.since_ns
        left = 0.0 if seen.claim.holder is None else seen.claim.seconds - waited_ns / 1e9
        if left > 0:
            return min(left, self._pace)
        if await self._claim(seen.revision):
            return self._pace
        return backoff_seconds(0, base=CONTENDED_SECONDS, cap=CONTENDED_SECONDS)

    async def _look(self) -> Seen:
        """What the cell says; notes what is ours and what isn't."""
        kept = await self._cell().read(timeout_seconds=self._pace)
        # After the answer: what it tells of was written before now, so its time can't end too early here.
        now_ns = self._clock.monotonic_ns()
        found = Kept(0, b"") if kept is None else kept
        claim = FREE if kept is None else read_claim(kept.body)
        before = self._seen
        if before is None or before.revision != found.revision:
            before = Seen(found.revision, claim, now_ns)
        self._seen = before
        self._unanswered = False
        self._own = found.revision if claim.holder == self.holder else None
        if self._own is None:
            self._until_ns = 0
        return before

    async def _claim(self, revision: int) -> bool:
        """Write that it is ours; False where the cell has moved on."""
        sent_ns, began = self._clock.monotonic_ns(), self.term is None
        if began:
            self._since_ns = self._clock.now_ns()
        body = msgspec.json.encode(Claim(self.holder, self._seconds, self._since_ns))
        self._unanswered = True
        written = await self._cell().replace(body, revision=revision, timeout_seconds=self._pace)
        self._unanswered = False
        if written is None:
            return False
        self._own, self._until_ns = written, sent_ns + round(self._seconds * (1 - MARGIN) * 1e9)
        if began:
            self._terms += 1
            for callback in self._taken:
                callback()
        return True

    async def _let_go(self, revision: int) -> None:
        written = await self._cell().replace(
            msgspec.json.encode(FREE), revision=revision, timeout_seconds=RELEASE_SECONDS
        )
        if written is None:
            await self._look()
        else:
            self._own = None

    def _tell(self) -> None:
        term = self.term
        if term is not None and term != self._told:
            _log.info("lease taken", holder=self.holder, term=term, seconds=self._seconds)
        elif term is None and self._told is not None:
            _log.warning("lease lost", holder=self.holder, active=self.active, problem=self._problem)
        self._told = term

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._heard.wait()
            self._heard.clear()
            await self._clock.sleep(HEARD_SECONDS)
