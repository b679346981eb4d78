"""A start: what is configured is in force before anything is decided, and who isn't the reconciler leaves it alone."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName
from modelyard_events.model import ModelPlacementRefused, ModelScheduleSet
from modelyard_events.spec import Autoscale, Schedule
from modelyard_projections.fleet import Touched
from modelyard_services.cli.local import ignoring
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from modelyard_services.policy.configuration import read_parsed
from modelyard_services.reconciler.main import work
from modelyard_services.reconciler.sources import FILE, INLINE, configuration_settings, read_configuration
from tests.support.given import a_model, an_approved_node
from tests.support.yard import eventually

GROUPED = """\
models:
- {name: a, command: [serve, "{port}"], vram: 1GiB, concurrency_groups: [g], pinned: true}
- {name: b, command: [serve, "{port}"], vram: 1GiB, concurrency_groups: [g]}
"""


async def test_groups_and_pins_are_in_force_before_the_first_pass(tmp_path: Path) -> None:
    """S3, R5, X23: the log still says otherwise, both models are wanted, and there is room for both."""
    file = tmp_path / "fleet.yaml"
    file.write_text(GROUPED)
    configuration = read_configuration(configuration_settings(None, None, (file,), environment={}))
    async with in_memory("reconciler", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=5)
        wanted = Schedule(mode=Autoscale(1))
        before = [
            *an_approved_node(),
            *a_model("a"),
            *a_model("b"),
            *(ModelScheduleSet(model=ModelName(name), schedule=wanted, source="api") for name in "ab"),
        ]
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: before)
        pending = ["not applied yet"]
        refused = asyncio.Event()

        def note(events: Sequence[Recorded], _touched: list[Touched]) -> None:
            if any(isinstance(recorded.event, ModelPlacementRefused) for recorded in events):
                refused.set()

        runtime.on_batch(note)
        running = asyncio.create_task(work(runtime, configuration, pending))
        async with asyncio.timeout(5):
            await refused.wait()
        running.cancel()
        (placed,) = runtime.fleet.replicas.values()
        assert (placed.model, placed.groups, placed.pinned) == ("a", ("g",), True)
        assert pending == []


async def test_a_log_that_is_away_at_the_start_is_waited_for_and_nothing_is_decided_before(tmp_path: Path) -> None:
    """S3, X20, X23: what couldn't be appended is not given up, and no pass goes by without it."""
    file = tmp_path / "fleet.yaml"
    file.write_text(GROUPED)
    configuration = read_configuration(configuration_settings(None, None, (file,), environment={}))
    async with in_memory("reconciler", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=5)
        runtime.journal.attach(None)
        pending = ["not applied yet"]
        running = asyncio.create_task(work(runtime, configuration, pending))
        with capture_logs() as logs:
            await eventually(lambda: bool(logs))
        assert (runtime.fleet.sequence, pending) == (0, ["not applied yet"])
        runtime.journal.attach(runtime.log)
        await eventually(lambda: not pending)
        running.cancel()
        assert set(runtime.fleet.models) == {"a", "b"}


async def test_what_is_not_the_reconciler_says_that_it_ignores_a_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S3."""
    monkeypatch.setenv(INLINE, "[nonsense")
    monkeypatch.delenv(FILE, raising=False)
    served: list[asyncio.Event] = []

    async def serve(stop: asyncio.Event) -> None:
        served.append(stop)

    with capture_logs() as logs:
        await ignoring(serve)(asyncio.Event())
    assert [(each["log_level"], each["variable"]) for each in logs] == [("warning", INLINE)]
    assert len(served) == 1


def test_no_document_is_no_configuration() -> None:
    assert read_parsed([]).schedules == {}
