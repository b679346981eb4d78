"""How often workers tell that they live: a setting of the fleet, which they hear of here, for they hear no fleet (N8).

Invariant: a worker goes by the setting from its registration on, and soon after each change; telling it again is
harmless, so every registrar does.
"""

from typing import Final

import msgspec
import structlog

from modelyard_events.requests import BEAT
from modelyard_events.subjects import worker_subject
from modelyard_projections.fleet import Alive
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError

LOOK_SECONDS: Final = 0.5
"""How soon after a change workers hear of it: far below a heartbeat."""

_log = structlog.get_logger(__name__)


async def keep_telling(runtime: Runtime) -> None:
    """Tell all workers at the start, and after each change of the setting, until cancelled."""
    told: float | None = None
    while True:
        seconds = runtime.fleet.settings.heartbeat_seconds
        if seconds != told and runtime.ready:
            try:
                await tell(runtime, seconds)
                told = seconds
            except UnavailableError as away:
                _log.info("workers will be told later how often to tell that they live", problem=away.detail)
        await runtime.clock.sleep(LOOK_SECONDS)


async def tell(runtime: Runtime, seconds: float) -> None:
    """Tell every worker that lives.

    Raises:
        UnavailableError: NATS is away.
    """
    body = msgspec.json.encode(seconds)
    for node in list(runtime.fleet.nodes.values()):
        if isinstance(node.liveness, Alive):
            await runtime.bus.publish(worker_subject(node.name, BEAT), body)
