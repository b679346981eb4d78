"""On what the reconciler decides: a fold that holds the whole log, or not at all (rule C1, trap X20)."""

import asyncio
from collections.abc import Sequence

import pytest

from modelyard_events.envelope import Recorded
from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.model import ModelScheduleSet
from modelyard_events.replica import ReplicaPlaced
from modelyard_events.spec import Autoscale, Schedule
from modelyard_projections.fleet import Touched
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from tests.support.given import a_model, an_approved_node
from tests.support.held_log import HeldLog
from tests.support.reconciling import reconciling

TURNS = 200
"""Of the loop: more than a pass and its append take in memory."""

WANTED = ModelScheduleSet(model="m", schedule=Schedule(mode=Autoscale(1)), source="api")


def frozen(value: bool) -> FleetSettingsChanged:  # noqa: FBT001 - a sentence in the test
    return FleetSettingsChanged(settings=Settings(reconciler_frozen=value), changed=("reconciler_frozen",))


@pytest.mark.parametrize("caught_up", [False, True])
async def test_nothing_is_decided_on_a_fold_that_lags_behind_the_log(*, caught_up: bool) -> None:
    """C1, X20: the settings are no part of what an append guards, so what isn't read yet must not count as not said."""
    log = MemoryLog()
    async with in_memory("operator", log, MemoryBus()) as operator:
        await operator.wait_ready(timeout_seconds=5)
        wanted = [*an_approved_node(), *a_model(), WANTED]
        await operator.journal.commit(operator.envelope(), lambda _fleet: wanted)
        first = operator.fleet.sequence
        await operator.journal.commit(operator.envelope(), lambda _fleet: [frozen(True)])
    held = HeldLog(log, first if caught_up else first + 1, first=first)
    async with in_memory("reconciler", held, MemoryBus()) as runtime:
        await runtime.journal.passed(first, timeout_seconds=5)
        runtime.feed.target = first + 1
        placed: list[int] = []

        def note(events: Sequence[Recorded], _touched: list[Touched]) -> None:
            placed.extend(each.sequence for each in events if isinstance(each.event, ReplicaPlaced))

        runtime.on_batch(note)
        running = asyncio.create_task((await reconciling(runtime)).run())
        for _ in range(TURNS):
            await asyncio.sleep(0)
        held.release()
        await runtime.wait_ready(timeout_seconds=5)
        await runtime.journal.passed(first + 1, timeout_seconds=5)
        thawed = await runtime.journal.commit(runtime.envelope(), lambda _fleet: [frozen(False)])
        await runtime.journal.passed(thawed.sequence + 1, timeout_seconds=5)
        running.cancel()
    assert placed == [thawed.sequence + 1]
