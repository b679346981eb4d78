"""One of the projector's duties, done again and again while servers come and go.

Invariant: a duty that stops says why and stays stopped, and takes no other one with it; what nobody foresaw ends the
process.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import nats.errors
import structlog

from modelyard_projections.checkpoint import CheckpointError
from modelyard_services.effects.clock import Clock, backoff_seconds
from modelyard_services.errors import ModelyardError, UnavailableError

RETRY_BASE_SECONDS: Final = 0.1
RETRY_CAP_SECONDS: Final = 5.0
"""Between tries to reach NATS: soon after a restart, gentle in an outage."""

_log = structlog.get_logger(__name__)


class Duty:
    """`do`, which connects by itself and calls `begun` when it has. `problem` says why it isn't being done."""

    def __init__(self, name: str, do: Callable[["Duty"], Awaitable[None]], clock: Clock) -> None:
        self.name = name
        self.problem: str | None = "connecting"
        self._do = do
        self._clock = clock
        self._attempt = 0

    def begun(self) -> None:
        """It is being done."""
        self.problem, self._attempt = None, 0

    async def run(self) -> None:
        """Do it until it is done, or stops for a reason that trying again can't mend."""
        while True:
            try:
                await self._do(self)
            except (UnavailableError, nats.errors.Error, OSError, TimeoutError) as away:
                self.problem = f"away: {away or type(away).__name__}"
                _log.warning("duty waits", duty=self.name, problem=self.problem, attempt=self._attempt)
            except (CheckpointError, ModelyardError) as stopped:
                self.problem = f"stopped: {stopped}"
                _log.error("duty stopped", duty=self.name, problem=str(stopped))
                return
            else:
                return
            await self._clock.sleep(backoff_seconds(self._attempt, base=RETRY_BASE_SECONDS, cap=RETRY_CAP_SECONDS))
            self._attempt += 1
