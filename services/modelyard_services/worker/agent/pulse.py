"""When a worker tells that it lives: at once after news, and as often as the fleet's settings say (rule N8).

Invariant: what comes while it tells is told next; only news are told more often than that.
"""

import asyncio

from modelyard_events.fleet import Settings


class Pulse:
    """Time and again it is `due`."""

    def __init__(self) -> None:
        self._seconds = Settings().heartbeat_seconds
        self._news = asyncio.Event()

    def now(self) -> None:
        """There is news."""
        self._news.set()

    def every(self, seconds: float) -> None:
        """From now on; beginning now, if it is another time than before."""
        if seconds != self._seconds:
            self._seconds = seconds
            self.now()

    async def due(self) -> None:
        """Wait for news, or for the ordinary time."""
        try:
            async with asyncio.timeout(self._seconds):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()
