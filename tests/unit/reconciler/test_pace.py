"""How often the reconciler looks where nothing happens, and judges silence: settings of the fleet (C1, N9, S1)."""

import pytest

from modelyard_events.fleet import FleetSettingsChanged, Settings
from modelyard_events.ids import NodeName
from modelyard_events.telemetry import Heartbeat
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.reconciler.loop import Reconciler
from tests.support.given import an_approved_node, incarnation_of
from tests.support.held_clock import HeldClock
from tests.support.reconciling import reconciling


@pytest.mark.parametrize(
    ("chosen", "pause", "judged"),
    [
        ({}, 15, 45),
        ({"reconciler_pass_seconds": 4.0}, 4, 45),
        ({"liveness_pass_seconds": 5.0}, 5, 35),
        ({"reconciler_pass_seconds": 10.0, "liveness_pass_seconds": 20.0}, 10, 40),
    ],
)
async def test_the_longest_pause_and_when_silence_is_judged_are_as_the_settings_say(
    chosen: dict[str, float], pause: float, judged: float
) -> None:
    """C1, N9: by the rule every 15 s, so that a node that fell silent is lost a quarter of a minute late at most."""
    async with in_memory("reconciler", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=5)
        settings = Settings(lost_after_seconds=30.0, **chosen)  # type: ignore[arg-type]
        events = [*an_approved_node(), FleetSettingsChanged(settings=settings, changed=tuple(chosen))]
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: events)
        await runtime.journal.passed(len(events), timeout_seconds=5)
        runtime.clock = clock = HeldClock()
        runtime.connected_since_ns = clock.monotonic_ns()
        runtime.demand.hear_node(
            Heartbeat(NodeName("n1"), incarnation_of("n1"), runtime.fleet.sequence), now_ns=clock.monotonic_ns()
        )
        reconciler = await reconciling(runtime)
        assert reconciler._pause() == pause
        assert [seconds for seconds in range(0, 50, 5) if await moved(clock, reconciler, 5 * bool(seconds))] == [judged]


async def moved(clock: HeldClock, reconciler: Reconciler, seconds: float) -> int:
    """What a pass comes to so much later."""
    clock.move(seconds)
    return await reconciler.step()
