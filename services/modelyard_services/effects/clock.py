"""Time and chance, the only place where the program asks for them.

Invariant: everything that must be repeatable gets the time and its ids as data from here.
"""

import asyncio
import random
import secrets
import time
from datetime import UTC, datetime

ID_BYTES = 12
"""96 random bits: no collision in any fleet's life, and short enough to read aloud."""


class Clock:
    """The machine's clock."""

    def now_ns(self) -> int:
        """Nanoseconds since 1970."""
        return time.time_ns()

    def now(self) -> datetime:
        """The time in UTC."""
        return datetime.now(UTC)

    def monotonic_ns(self) -> int:
        """Nanoseconds of a clock that never jumps: for silences and waits."""
        return time.monotonic_ns()

    async def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        await asyncio.sleep(seconds)


class Ids:
    """Random identifiers."""

    def new(self, prefix: str) -> str:
        """`<prefix>-<24 hex digits>`."""
        return f"{prefix}-{secrets.token_hex(ID_BYTES)}"

    def secret(self) -> str:
        """256 random bits in URL-safe text: a token."""
        return secrets.token_urlsafe(32)


def backoff_seconds(attempt: int, *, base: float, cap: float) -> float:
    """The wait before try `attempt` (0-based): doubling up to `cap`, half of it jitter, so rivals spread out."""
    full = min(cap, base * 2.0 ** min(attempt, 30))
    return full / 2 + random.random() * full / 2  # noqa: S311 - jitter isn't a secret
