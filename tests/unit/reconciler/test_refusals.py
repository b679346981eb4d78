"""Placements that the reconciler is refused, counted beside what the log is told (rule P5)."""

from prometheus_client import REGISTRY

from modelyard_events.model import ModelPlacementRefused, ModelScheduleSet
from modelyard_events.node import NodeCordoned
from modelyard_events.spec import Autoscale, Schedule
from modelyard_services.effects.bus import MemoryBus
from modelyard_services.effects.log.memory import MemoryLog
from modelyard_services.effects.runtime import in_memory
from tests.support.given import a_model, an_approved_node
from tests.support.reconciling import reconciling


def counted(kind: str) -> float:
    return REGISTRY.get_sample_value("modelyard_placements_refused_total", {"kind": kind}) or 0.0


async def test_each_pass_that_is_refused_counts_though_the_log_hears_of_it_once() -> None:
    """P5: repeats are metrics; what is placed after all is none."""
    wanted = ModelScheduleSet(model="m", schedule=Schedule(mode=Autoscale(min_replicas=1)), source="api")
    async with in_memory("reconciler", MemoryLog(), MemoryBus()) as runtime:
        await runtime.wait_ready(timeout_seconds=1)
        told: list[object] = []
        runtime.on_batch(lambda events, _touched: told.extend(recorded.event for recorded in events))
        happened = [*an_approved_node(), NodeCordoned(node="n1"), *a_model(), wanted]
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: happened)
        before, reconciler = counted("unsatisfiable"), await reconciling(runtime)
        for _ in range(4):
            await reconciler.step()
        assert counted("unsatisfiable") == before + 4
        assert sum(isinstance(event, ModelPlacementRefused) for event in told) == 1
        await runtime.journal.commit(runtime.envelope(), lambda _fleet: an_approved_node("n2"))
        for _ in range(2):
            await reconciler.step()
        assert runtime.fleet.replicas
        assert counted("unsatisfiable") == before + 4
