"""The reconciler process: applies the start-up configuration, then reconciles until it is stopped.

Invariant: what the configuration lists is in force before the first pass (rule S3, trap X23); a bad configuration
stops the start, and nothing of it is applied.
"""

import asyncio
import os
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from modelyard_events.envelope import Actor
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.documents import read_environment, read_file
from modelyard_services.effects.journal import Decide
from modelyard_services.effects.process import until
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError
from modelyard_services.policy.configuration import Configuration, Document, read_documents
from modelyard_services.policy.models import define
from modelyard_services.policy.schedules import set_schedule
from modelyard_services.reconciler.loop import Reconciler
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
    configuration = read_configuration(settings)
    pending = ["the configuration isn't applied yet"]
    async with open_runtime(settings.process) as runtime:
        runtime.on_problems(lambda: pending)
        await until(stop, _work(runtime, configuration, pending))


async def _work(runtime: Runtime, configuration: Configuration, pending: list[str]) -> None:
    # It hears what led to what from the first event on, so it is there before anything is applied.
    reconciler = Reconciler(runtime)
    await apply(runtime, configuration)
    pending.clear()
    await reconciler.run()


def read_configuration(settings: ReconcilerSettings) -> Configuration:
    """All that environment and files ask for; the files win over the environment, the later over the earlier.

    Raises:
        InvalidEntriesError: with every fault of every document.
    """
    documents = [Document(*read) for read in read_environment(os.environ)]
    documents += [Document(*read_file(Path(file), source="file")) for file in settings.config_files]
    configuration = read_documents(documents)
    for warning in configuration.warnings:
        _log.warning("configuration", warning=warning)
    return configuration


async def apply(runtime: Runtime, configuration: Configuration) -> None:
    """Append what differs from what is; waits for the log for as long as it takes."""
    for model, spec in configuration.models.items():
        await _commit(runtime, partial(define, model=model, spec=spec))
    for model, entry in configuration.schedules.items():
        await _commit(runtime, partial(set_schedule, model=model, schedule=entry.schedule, source=entry.source))


async def _commit(runtime: Runtime, decide: Decide) -> None:
    while True:
        try:
            # Not waiting for readiness, which waits for this: what an older fold decides, the guards refuse.
            await runtime.journal.commit(runtime.envelope(ACTOR), decide)
        except UnavailableError as away:
            _log.warning("the configuration has to wait", problem=away.detail)
            await runtime.clock.sleep(RETRY_SECONDS)
        else:
            return
