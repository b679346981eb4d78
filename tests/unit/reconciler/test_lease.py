"""What the lease is to the loop: who hasn't it decides nothing, who lost it stops, and a new term begins anew (C1)."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelScheduleSet
from modelyard_events.spec import Autoscale, Schedule
from modelyard_projections.fleet import Fleet
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.lease.lease import Lease
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.policy.configuration import read_parsed
from modelyard_services.reconciler.loop import Reconciler
from modelyard_services.reconciler.main import lease_of, work
from modelyard_services.settings import LEASE_SECONDS
from tests.support.given import GIB, a_model, an_approved_node, some_spec
from tests.support.held_clock import HeldClock

M = ModelName("m")
WANTED = ModelScheduleSet(model=M, schedule=Schedule(mode=Autoscale(1)), source="api")


class Process:
    """One reconciler, its lease and the clock of both; `turn` and `step` are its two duties, once each."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.clock = HeldClock()
        runtime.clock = self.clock
        self.lease: Lease = lease_of(runtime, LEASE_SECONDS)
        self.reconciler = Reconciler(runtime, self.lease)

    async def turn(self) -> None:
        await self.lease.turn()

    async def step(self) -> int:
        return await self.reconciler.step()

    async def append(self, *events: AnyEvent) -> None:
        await self.runtime.journal.commit(self.runtime.envelope(), lambda _fleet: events)


@contextlib.asynccontextmanager
async def processes(count: int) -> AsyncIterator[list[Process]]:
    """That many on one log and one bus."""
    log, bus = MemoryLog(), MemoryBus()
    async with contextlib.AsyncExitStack() as stack:
        runtimes = [await stack.enter_async_context(in_memory("reconciler", log, bus)) for _ in range(count)]
        for runtime in runtimes:
            await runtime.wait_ready(timeout_seconds=5)
        yield [Process(runtime) for runtime in runtimes]


async def folded(here: Process, there: Process) -> None:
    await there.runtime.journal.passed(here.runtime.fleet.sequence, timeout_seconds=5)


async def test_who_stands_by_folds_along_and_decides_nothing() -> None:
    async with processes(2) as (a, b):
        await a.turn()
        await b.turn()
        await b.append(*an_approved_node(), *a_model(), WANTED)
        assert await b.step() == 0
        await folded(b, a)
        assert await a.step() == 1
        await folded(a, b)
        assert len(b.runtime.fleet.replicas) == 1


async def test_a_pass_whose_lease_is_lost_meanwhile_appends_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a process that was frozen between its look and its append."""
    async with processes(2) as (a, b):
        await a.turn()
        await b.turn()
        await a.append(*an_approved_node(), *a_model(), WANTED)
        commit = a.runtime.journal.commit

        async def late(*arguments: object, **named: object) -> object:
            a.clock.move(LEASE_SECONDS)
            return await commit(*arguments, **named)  # type: ignore[arg-type]

        monkeypatch.setattr(a.runtime.journal, "commit", late)
        before = a.runtime.fleet.sequence
        await a.step()
        assert a.runtime.fleet.sequence == before
        b.clock.move(LEASE_SECONDS)
        await folded(a, b)
        await b.turn()
        assert await b.step() == 1
        assert len(b.runtime.fleet.replicas) == 1


async def test_what_a_lapsed_term_began_is_not_finished_by_the_next_term_of_the_same_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came back to the lease, but what it saw before the freeze may be long past."""
    async with processes(1) as (a,):
        await a.turn()
        await a.append(*an_approved_node(), *a_model(), WANTED)
        commit = a.runtime.journal.commit

        async def late(*arguments: object, **named: object) -> object:
            a.clock.move(10 * LEASE_SECONDS)
            await a.turn()
            return await commit(*arguments, **named)  # type: ignore[arg-type]

        with monkeypatch.context() as frozen:
            frozen.setattr(a.runtime.journal, "commit", late)
            before = a.runtime.fleet.sequence
            await a.step()
            assert a.runtime.fleet.sequence == before
        assert await a.step() == 1
        assert len(a.runtime.fleet.replicas) == 1


async def test_the_breakers_count_starts_anew_with_whoever_takes_over() -> None:
    """C5: the count is the reconciler's; two failed passes of one and one of the next are not three in a row."""
    async with processes(2) as (a, b):
        await a.append(*an_approved_node(), *a_model(spec=some_spec(vram=400 * GIB)), WANTED)
        await folded(a, b)
        await a.turn()
        await b.turn()
        await _failed_passes(a, 2)
        await a.lease.release()
        await b.turn()
        await _failed_passes(b, 2)
        assert _breaker(b.runtime.fleet) is None, "two of its own so far"
        await _failed_passes(b, 1)
        assert _breaker(b.runtime.fleet) is not None


async def test_the_breakers_count_starts_anew_with_a_new_term_of_the_same_process() -> None:
    """C5: who lost the lease may come back to a count of long ago, between which somebody else saw room."""
    async with processes(1) as (a,):
        await a.append(*an_approved_node(), *a_model(spec=some_spec(vram=400 * GIB)), WANTED)
        await a.turn()
        await _failed_passes(a, 2)
        a.clock.move(LEASE_SECONDS)
        await a.turn()
        assert a.lease.term == 2
        await _failed_passes(a, 2)
        assert _breaker(a.runtime.fleet) is None
        await _failed_passes(a, 1)
        assert _breaker(a.runtime.fleet) is not None


async def test_of_two_that_work_on_one_log_one_says_that_it_acts_and_both_say_who() -> None:
    async with processes(2) as found:
        runtimes = [each.runtime for each in found]
        tasks = [asyncio.create_task(work(runtime, read_parsed([]), [])) for runtime in runtimes]
        async with asyncio.timeout(10):
            while not all(runtime.notes["lease"]["active"] for runtime in runtimes):  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.01)
        notes = [runtime.notes["lease"] for runtime in runtimes]
        (acting,) = [note for note in notes if note["acts"]]
        assert {note["active"] for note in notes} == {acting["holder"]}
        assert not any(runtime.problems for runtime in runtimes), "who stands by is ready, too"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [runtime.notes["lease"]["acts"] for runtime in runtimes] == [False, False]


async def _failed_passes(process: Process, count: int) -> None:
    """Passes that nothing fits in, far enough apart to count, with the lease kept all the while."""
    for _ in range(count):
        for _ in range(5):
            process.clock.move(LEASE_SECONDS / 4)
            await process.turn()
        await process.step()


def _breaker(fleet: Fleet) -> object:
    return fleet.models[M].breaker
