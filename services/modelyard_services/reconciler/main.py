"""The reconciler process: applies the start-up configuration, then reconciles or stands by until it is stopped.

Invariant: what the configuration lists is in force before the first pass (rule S3, trap X23); a bad configuration
stops the start, and nothing of it is applied. A stop ends the loop first and gives the lease back then (rule C1).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import structlog

from modelyard_events.envelope import Actor, AnyEvent
from modelyard_events.subjects import RECONCILER_LEASE
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.bus import Bus
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.lease.claim import holder_name
from modelyard_services.effects.lease.lease import Lease
from modelyard_services.effects.looks import looked
from modelyard_services.effects.process import until
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError
from modelyard_services.policy import apply as policy
from modelyard_services.policy.apply import parts
from modelyard_services.policy.configuration import Configuration
from modelyard_services.policy.estimate import estimated
from modelyard_services.reconciler import metrics
from modelyard_services.reconciler.loop import Reconciler
from modelyard_services.reconciler.sources import read_configuration
from modelyard_services.settings import LEASE_SECONDS, ReconcilerSettings

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
        await until(stop, work(runtime, configuration, pending, lease_seconds=settings.lease_seconds))


async def work(
    runtime: Runtime, configuration: Configuration, pending: list[str], *, lease_seconds: float = LEASE_SECONDS
) -> None:
    """Apply `configuration`, then reconcile until cancelled; `pending` is cleared between the two."""
    lease = lease_of(runtime, lease_seconds)
    # It hears what led to what from the first event on, so it is there before anything is applied.
    reconciler = Reconciler(runtime, lease)
    await apply(runtime, configuration)
    pending.clear()
    async with kept(runtime, lease):
        await reconciler.run()


def lease_of(runtime: Runtime, seconds: float) -> Lease:
    """This process's part in the reconcilers' lease, which it tells of."""
    lease = Lease(
        lambda: runtime.bus.cell(RECONCILER_LEASE),
        holder=holder_name(runtime.ids.new("r")),
        seconds=seconds,
        clock=runtime.clock,
    )
    metrics.tell(lease)
    runtime.on_notes("lease", lambda: {"holder": lease.holder, "active": lease.active, "acts": lease.term is not None})
    return lease


@contextlib.asynccontextmanager
async def kept(runtime: Runtime, lease: Lease) -> AsyncIterator[None]:
    """Take part in `lease` meanwhile; given back at the end, when nothing here acts any more."""

    async def listen(bus: Bus) -> None:
        await bus.listen(RECONCILER_LEASE, lambda _subject, body: lease.hear(body))

    runtime.on_problems(lambda: [f"lease: {lease.problem}"] if lease.problem else [])
    await runtime.on_connect(listen)
    try:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(lease.keep(), name="lease")
            try:
                yield
            finally:
                keeping.cancel()
    finally:
        await lease.release()


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
