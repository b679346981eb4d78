"""What the answer of a replica's process to a health check says of the replica (rule T4).

Invariant: silence while requests are served is no failure (X15), and a failure is never remembered as a success.
"""

from typing import Final, Literal

from modelyard_services.settings import PROBE_FRESH_SECONDS

Answer = Literal["healthy", "silent", "wrong"]
"""`silent`: it listens and didn't answer in time; `wrong`: nothing listens, or it says that it isn't well."""

BUSY_SECONDS: Final = 5.0
"""How long a replica that is too busy to answer is left in peace: else each request waits for a probe of its own."""


def usable_seconds(answer: Answer, *, serving: bool, fresh_seconds: float = PROBE_FRESH_SECONDS) -> float | None:
    """How long the replica may be used unasked after `answer`; None when it may not be used."""
    if answer == "healthy":
        return fresh_seconds
    return BUSY_SECONDS if answer == "silent" and serving else None


def misses_after(misses: int, *, missed: bool, idle: bool) -> int:
    """Misses in a row with one more answer; only those of an idle replica count."""
    return misses + 1 if missed and idle else 0
