"""A clock that stands still until a test moves it; waits on it are real ones."""

import time

from modelyard_services.effects.clock import Clock


class HeldClock(Clock):
    """Begins with the machine's time."""

    def __init__(self) -> None:
        self._monotonic_ns, self._now_ns = time.monotonic_ns(), time.time_ns()

    def move(self, seconds: float) -> None:
        self._monotonic_ns += round(seconds * 1e9)
        self._now_ns += round(seconds * 1e9)

    def monotonic_ns(self) -> int:
        return self._monotonic_ns

    def now_ns(self) -> int:
        return self._now_ns
