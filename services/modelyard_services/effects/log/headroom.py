"""How full the log is.

Invariant: a refusal rests on what the server said just now, an admission on what it said at most
`REFRESH_SECONDS` ago plus all that this process has written since.
"""

import asyncio
from typing import Final

from modelyard_services.effects.log.api import Api
from modelyard_services.effects.log.contract import HEADROOM_FRACTION

REFRESH_SECONDS: Final = 1.0
"""Other processes write too: in a second they can't pass from 90 % to full of any ceiling one would set."""

EVENT_OVERHEAD_BYTES: Final = 300
"""Headers, subject and framing of one stored event, measured at 150 to 290."""


class Headroom:
    """Watches one stream's size."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._bytes = 0
        self._bytes_max = 0
        self._checked_at = float("-inf")

    @property
    def account(self) -> str:
        """How full it is, in words."""
        return f"{self._bytes} of {self._bytes_max} bytes are used"

    async def refresh(self, size: int) -> None:
        """Ask the server again if what we know is old, or speaks against `size` more bytes.

        A server that doesn't answer leaves us with what we know: the append will tell.
        """
        now = asyncio.get_running_loop().time()
        if now - self._checked_at < REFRESH_SECONDS and self.has_room_for(size):
            return
        self._checked_at = now
        if (info := await self._api.glance()) is None:
            return
        self._bytes, self._bytes_max = info.state.bytes, info.ceiling

    def has_room_for(self, size: int) -> bool:
        """Whether a decision that is no fact and no end may still be appended."""
        return self._bytes_max <= 0 or self._bytes + size <= self._bytes_max * HEADROOM_FRACTION

    def used(self, size: int, *, messages: int) -> None:
        """Count what was just written."""
        self._bytes += size + messages * EVENT_OVERHEAD_BYTES
