"""Notices a client that hangs up, and ends its request: wait, upstream answer, lease and all (X16).

Invariant: the request's own task is cancelled, so whatever it holds is given back on the one way that it has.
"""

import asyncio
from types import TracebackType
from typing import Final, Self

from modelyard_services.gateway.request import Receive

WATCH_AFTER_SECONDS: Final = 0.05
"""Shorter requests end by themselves before anybody could profit; watching each would cost a task, a tenth of all."""


class Watch:
    """Watches one client while the request's task is inside."""

    def __init__(self, receive: Receive) -> None:
        self.gone = False
        self._receive = receive
        self._request: asyncio.Task[object] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._request = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_SECONDS, self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> bool:
        """Swallows the cancellation that this watch caused."""
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if not self.gone or kind is not asyncio.CancelledError or self._request is None:
            return False
        self._request.uncancel()
        return True

    def _begin(self) -> None:
        self._watcher = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        if self._request is not None:
            self._request.cancel()
