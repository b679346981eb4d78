"""The reconciler process: applies the start-up configuration, then reconciles until it is stopped.

Invariant: what the configuration lists is in force before the first pass (rule S3, trap X23); a bad configuration
stops the start, and nothing of it is applied.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final

import structlog

from modelyard_events.envelope import Actor, AnyEvent
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.model_files import looked
from modelyard_services.effects.process import until
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError
from modelyard_services.policy import apply as policy
from modelyard_services.policy.apply import parts
from modelyard_services.policy.configuration import Configuration
from modelyard_services.policy.estimate import estimated
from modelyard_services.reconciler.loop import Reconciler
from modelyard_services.reconciler.sources import read_configuration
from modelyard_services.settings import ReconcilerSettings

RETRY_SECONDS: Final = 0.2
"""While the log is away: a start is waited for."""

ACTOR: Final = Actor("system", "configuration")

_log = structlog.get_logger(__name__)


async def serve(settings: ReconcilerSettings, stop: asyncio.Event) -> None:
    """Reconcile until `stop` is set.

    Raises:
        InvalidEntriesError: a configuration can't be read; every fault is told.
    """
    configuration = read_configuration(settings.configuration)
    pending = ["the configuration isn't applied yet"]
    async with open_runtime(settings.process) as runtime:
        runtime.on_problems(lambda: pending)
        await until(stop, work(runtime, configuration, pending))


async def work(runtime: Runtime, configuration: Configuration, pending: list[str]) -> None:
    """Apply `configuration`, then reconcile until cancelled; `pending` is cleared between the two."""
    # It hears what led to what from the first event on, so it is there before anything is applied.
    reconciler = Reconciler(runtime)
    await apply(runtime, configuration)
    pending.clear()
    await reconciler.run()


async def apply(runtime: Runtime, configuration: Configuration) -> None:
    """Append what differs from what is; waits for the log for as long as it takes."""
    for warning in configuration.warnings:
        _log.warning("configuration", warning=warning)
    configuration = await looked(partial(estimated, configuration))
    for part in parts(configuration):
        await _commit(runtime, part, configuration)


async def _commit(runtime: Runtime, part: Configuration, whole: Configuration) -> None:
    told: tuple[str, ...] = ()

    def decide(fleet: Fleet) -> Sequence[AnyEvent]:
        nonlocal told
        events = policy.apply(fleet, part, source=None, whole=whole)
        told = policy.warnings(fleet, part, events)
        return events

    while True:
        try:
            # Not waiting for readiness, which waits for this: what an older fold decides, the guards refuse.
            await runtime.journal.commit(runtime.envelope(ACTOR), decide)
        except UnavailableError as away:
            _log.warning("the configuration has to wait", problem=away.detail)
            await runtime.clock.sleep(RETRY_SECONDS)
        else:
            break
    for warning in told:
        _log.warning("configuration", warning=warning)
