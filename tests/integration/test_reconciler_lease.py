"""Two reconcilers whose NATS goes away: nobody acts then, and on its return one does (rule C1)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelScheduleSet
from modelyard_events.spec import Autoscale, Schedule
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.runtime import Runtime
from modelyard_services.errors import UnavailableError
from modelyard_services.policy.configuration import read_parsed
from modelyard_services.reconciler.main import work
from modelyard_services.settings import NatsSettings, ProcessSettings
from tests.support.given import a_model, an_approved_node
from tests.support.nats_servers import Servers

SECONDS = 1.0


@contextlib.asynccontextmanager
async def reconciling(nats: NatsSettings, *, seconds: float = SECONDS) -> AsyncIterator[Runtime]:
    """A reconciler at work on a connection of its own, stopped as SIGTERM stops it."""
    async with open_runtime(ProcessSettings("reconciler", nats)) as runtime:
        task = asyncio.create_task(work(runtime, read_parsed([]), [], lease_seconds=seconds))
        try:
            yield runtime
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


def acting(*runtimes: Runtime) -> list[Runtime]:
    return [runtime for runtime in runtimes if runtime.notes.get("lease", {}).get("acts")]


async def one_acts(*runtimes: Runtime) -> Runtime:
    async with asyncio.timeout(60):
        while not acting(*runtimes):  # noqa: ASYNC110 - time and a server say it, no event
            await asyncio.sleep(0.02)
    (one,) = acting(*runtimes)
    return one


async def append(runtime: Runtime, *events: AnyEvent) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await runtime.journal.commit(runtime.envelope(), lambda _fleet: events)
            except UnavailableError:
                await asyncio.sleep(0.05)
            else:
                return


async def replicas_are(runtime: Runtime, count: int) -> None:
    async with asyncio.timeout(60):
        while len(runtime.fleet.replicas) != count:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.02)


def wanting(count: int) -> ModelScheduleSet:
    return ModelScheduleSet(model=ModelName("m"), schedule=Schedule(mode=Autoscale(count)), source="api")


@pytest.mark.timeout(180)
async def test_with_nats_away_nobody_acts_and_on_its_return_one_does(nats_alone: Servers) -> None:
    nats = NatsSettings(nats_alone.url)
    async with (
        reconciling(nats) as first,
        reconciling(nats) as second,
        open_runtime(ProcessSettings("test", nats)) as me,
    ):
        await me.wait_ready(timeout_seconds=30)
        await append(me, *an_approved_node("n1", slots=8), *a_model(), wanting(1))
        await one_acts(first, second)
        await replicas_are(me, 1)
        nats_alone.nodes[0].kill()
        await asyncio.sleep(SECONDS)
        assert not acting(first, second)
        await asyncio.sleep(SECONDS)
        assert not acting(first, second), "nobody can see that the other is gone"
        nats_alone.revive()
        await append(me, wanting(2))
        await one_acts(first, second)
        await replicas_are(me, 2)


async def test_who_is_stopped_hands_over_before_its_time_is_over(nats_alone: Servers) -> None:
    """The other hears of it, too: its next look would be twelve seconds away."""
    nats = NatsSettings(nats_alone.url)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(reconciling(nats, seconds=60))
        await one_acts(first)
        async with reconciling(nats, seconds=60) as second:
            async with asyncio.timeout(30):
                while "lease" not in second.notes or second.notes["lease"]["active"] is None:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
            assert acting(first, second) == [first]
            await stack.aclose()
            async with asyncio.timeout(10):
                await one_acts(second)
