"""In whose trace the reconciler acts: that of what led to it, as long as that is news."""

import asyncio
from collections.abc import AsyncIterator

import msgspec
import pytest

from modelyard_events.envelope import AnyEvent, Entry, Envelope
from modelyard_events.model import ModelScaled, ModelScheduleSet
from modelyard_events.spec import Autoscale, Schedule
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import Runtime, in_memory
from modelyard_services.reconciler import loop
from tests.support.collector import recorded, trace_of
from tests.support.given import a_model, a_ready_replica, an_approved_node
from tests.support.reconciling import reconciling

TRACE = "0af7651916cd43dd8448eb211c80319c"
GIVEN = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with in_memory("reconciler", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        yield runtime


async def acted(runtime: Runtime) -> str:
    """The trace of what a schedule makes the reconciler place."""
    scheduled = ModelScheduleSet(model="m", schedule=Schedule(mode=Autoscale(min_replicas=1)), source="api")
    entry = await first_act(runtime, runtime.envelope(trace=GIVEN), [*an_approved_node(), *a_model(), scheduled])
    return entry.envelope.trace or ""


async def first_act(runtime: Runtime, envelope: Envelope, events: list[AnyEvent]) -> Entry:
    """What the reconciler appends first after `events`."""
    reconciler = await reconciling(runtime)
    await runtime.journal.commit(envelope, lambda _fleet: events)
    placed_at = runtime.fleet.sequence + 1
    async with asyncio.timeout(5):
        while runtime.fleet.sequence < placed_at:
            await reconciler.step()
    assert runtime.log is not None
    stored = await runtime.log.read(placed_at)
    assert stored is not None
    return msgspec.json.decode(stored.body, type=Entry)


async def test_a_scaling_names_the_event_that_led_to_it_and_says_why(runtime: Runtime) -> None:
    """C1, H1: the last event of the model, in its story."""
    replicas = [event for number in range(2) for event in a_ready_replica(f"r-{number}", index=number)]
    scheduled = ModelScheduleSet(model="m", schedule=Schedule(mode=Autoscale(0, 1)), source="api")
    events = [*an_approved_node(slots=2), *a_model(), *replicas, scheduled]
    given = runtime.envelope()
    entry = await first_act(runtime, given, events)
    assert isinstance(entry.event, ModelScaled)
    assert entry.event.reason == "above its ceiling of 1"
    assert entry.envelope.actor.kind == "system"
    assert entry.envelope.causation == given.event_id(len(events) - 1)
    assert entry.envelope.correlation == given.correlation


async def test_an_action_joins_the_trace_of_the_event_that_led_to_it(runtime: Runtime) -> None:
    """H1, also where nothing is recorded: the ids travel all the same."""
    assert await acted(runtime) == GIVEN


async def test_an_action_long_after_its_cause_links_to_that_trace_instead(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request's trace must not grow for weeks."""
    monkeypatch.setattr(loop, "TRACE_JOINED_SECONDS", 0.0)
    with recorded() as kept:
        trace = await acted(runtime)
    assert trace
    assert TRACE not in trace
    act = next(span for span in kept.get_finished_spans() if span.name == "act")
    assert trace_of(act) == trace[3:35]
    assert TRACE in {f"{link.context.trace_id:032x}" for link in act.links}


async def test_a_pass_that_finds_nothing_to_do_is_no_span(runtime: Runtime) -> None:
    with recorded() as kept:
        await (await reconciling(runtime)).step()
    assert not kept.get_finished_spans()
