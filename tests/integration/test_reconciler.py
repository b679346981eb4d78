"""Two reconcilers on a real NATS server, while the test plays operator, workers and a router."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from modelyard_events.envelope import Actor, AnyEvent, Entry
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelReplicaReady, ModelScheduleSet
from modelyard_events.node import NodeDrainFinished, NodeDrainStarted
from modelyard_events.replica import ReplicaDrainStarted, ReplicaLoaded, ReplicaLoadStarted, ReplicaPlaced
from modelyard_events.spec import Autoscale, Schedule, SpreadAll
from modelyard_events.subjects import router_telemetry_subject
from modelyard_events.telemetry import RouterReport
from modelyard_projections.fleet import Draining, Fleet, Loading, Placed
from modelyard_services.effects.connect import open_runtime
from modelyard_services.effects.embedded.children import ProcessTree
from modelyard_services.effects.embedded.nats import embedded_nats
from modelyard_services.effects.runtime import Runtime
from modelyard_services.policy.ending import begin_drain, end
from modelyard_services.reconciler.main import serve
from modelyard_services.settings import ConfigurationSettings, NatsSettings, ProcessSettings, ReconcilerSettings
from tests.support.given import a_model, an_approved_node, incarnation_of, some_process

M, LISTED = ModelName("m"), ModelName("listed")

CONFIGURATION = """
models: [{name: listed, command: [serve, "{port}"], vram: 1GiB}]
schedules: [{model_name: listed, min_replicas: 1}]
"""


class Yard:
    """The test's own place on the log: an operator, every worker and one router."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.leases: dict[ReplicaId, int] = {}

    @property
    def fleet(self) -> Fleet:
        return self.runtime.fleet

    async def decide(self, *events: AnyEvent) -> None:
        await self.commit(lambda _fleet: list(events))

    async def commit(self, decide: Callable[[Fleet], list[AnyEvent]]) -> None:
        await self.runtime.journal.commit(self.runtime.envelope(Actor("operator", "test")), decide)

    async def until(self, holds: Callable[[Fleet], bool], *, seconds: float = 15) -> None:
        """Work and report as workers and router do until `holds`."""
        async with asyncio.timeout(seconds):
            while not holds(self.fleet):
                await self.live(0.05)

    async def live(self, seconds: float) -> None:
        """Go on for `seconds` as workers and router do."""
        for _ in range(max(1, round(seconds / 0.05))):
            await self._work()
            report = RouterReport("router", self.fleet.sequence, dict(self.leases))
            await self.runtime.bus.publish(router_telemetry_subject("router"), msgspec.json.encode(report))
            await asyncio.sleep(0.05)

    async def entries(self) -> list[Entry]:
        log = self.runtime.log
        assert log is not None
        stored = [await log.read(sequence) for sequence in range(1, self.fleet.sequence + 1)]
        return [msgspec.json.decode(message.body, type=Entry) for message in stored if message is not None]

    async def _work(self) -> None:
        for state in list(self.fleet.replicas.values()):
            life, process = incarnation_of(state.node), some_process(state.id)
            match state.phase:
                case Placed() if not state.waits_for:
                    await self.decide(
                        ReplicaLoadStarted(node=state.node, replica=state.id, incarnation=life, process=process)
                    )
                case Loading():
                    await self.decide(
                        ReplicaLoaded(node=state.node, replica=state.id, incarnation=life, address="127.0.0.1:1"),
                        ModelReplicaReady(model=state.model, replica=state.id),
                    )
                case Draining(stopping=True):
                    await self.commit(lambda fleet, gone=state.id: end(fleet, [gone], reason="requested"))  # type: ignore[misc]
                case _:
                    pass


@pytest.fixture
async def yard(tmp_path: Path) -> AsyncIterator[Yard]:
    async with ProcessTree(tmp_path / "run") as tree:
        server = embedded_nats(tmp_path)
        await tree.start(server.child)
        nats = NatsSettings(server.control_url)
        file = tmp_path / "models.yaml"
        file.write_text(CONFIGURATION)
        settings = ReconcilerSettings(ProcessSettings("reconciler", nats), ConfigurationSettings(files=(str(file),)))
        async with open_runtime(ProcessSettings("test", nats)) as runtime, asyncio.TaskGroup() as tasks:
            stop = asyncio.Event()
            for _ in range(2):
                tasks.create_task(serve(settings, stop))
            await runtime.wait_ready(timeout_seconds=10)
            yield Yard(runtime)
            stop.set()


def ready(model: ModelName, count: int) -> Callable[[Fleet], bool]:
    def holds(fleet: Fleet) -> bool:
        state = fleet.models.get(model)
        return state is not None and [each.phase for each in state.replicas.values()] == ["ready"] * count

    return holds


def scheduled(schedule: Schedule) -> ModelScheduleSet:
    return ModelScheduleSet(model=M, schedule=schedule, source="api")


async def test_a_floor_is_filled_once_though_two_reconcile(yard: Yard) -> None:
    """C1, C2, X19, X21, H1: before any request; nobody places twice, and what led to it is named."""
    await yard.decide(*(event for name in ("n1", "n2", "n3") for event in an_approved_node(name, slots=2)))
    await yard.decide(*a_model(), scheduled(Schedule(mode=Autoscale(4))))
    await yard.until(ready(M, 4))
    await yard.until(ready(LISTED, 1))
    await asyncio.sleep(0.5)
    assert ready(M, 4)(yard.fleet)
    placed = [entry for entry in await yard.entries() if isinstance(entry.event, ReplicaPlaced)]
    assert len(placed) == 5
    assert {(entry.envelope.actor.kind, entry.envelope.actor.name) for entry in placed} == {("system", "reconciler")}
    assert all(entry.envelope.causation for entry in placed)


async def test_the_start_up_configuration_leaves_one_trace_however_many_start(yard: Yard) -> None:
    """S3: what already holds appends nothing."""
    await yard.until(lambda fleet: LISTED in fleet.models and fleet.models[LISTED].schedule is not None)
    await asyncio.sleep(0.5)
    tags = [type(entry.event).__name__ for entry in await yard.entries() if getattr(entry.event, "model", "") == LISTED]
    assert tags.count("ModelDefined") == 1
    assert tags.count("ModelScheduleSet") == 1


async def test_a_drained_node_empties_after_its_leases_and_its_replacement(yard: Yard) -> None:
    """N10, R8."""
    await yard.decide(*an_approved_node("n1"), *a_model(), scheduled(Schedule(mode=Autoscale(1))))
    await yard.until(ready(M, 1))
    old = next(iter(yard.fleet.models[M].replicas))
    yard.leases[old] = 1
    await yard.decide(*an_approved_node("n2"), NodeDrainStarted(node="n1", deadline_seconds=600))
    await yard.until(lambda fleet: isinstance(fleet.replicas[old].phase, Draining))
    assert [entry for entry in await yard.entries() if isinstance(entry.event, ReplicaDrainStarted)]
    await yard.live(6)
    phase = yard.fleet.replicas[old].phase
    assert isinstance(phase, Draining)
    assert not phase.stopping, "a lease is held on it still"
    yard.leases.clear()
    await yard.until(ready(M, 1))
    await yard.until(lambda fleet: getattr(fleet.nodes[NodeName("n1")].intent, "finished", False))
    assert NodeDrainFinished(node="n1") in [entry.event for entry in await yard.entries()]
    assert yard.fleet.replicas_of(M)[0].node == "n2"


async def test_spread_all_reaches_a_node_that_joins(yard: Yard) -> None:
    """C3, X18."""
    await yard.decide(*an_approved_node("n1", slots=2), *a_model(), scheduled(Schedule(mode=SpreadAll())))
    await yard.until(ready(M, 1))
    await yard.decide(*an_approved_node("n2", slots=2))
    await yard.until(ready(M, 2))
    assert {state.node for state in yard.fleet.replicas_of(M)} == {"n1", "n2"}


async def test_an_unload_ends_though_no_router_holds_anything(yard: Yard) -> None:
    """R8."""
    await yard.decide(*an_approved_node("n1"), *a_model(), scheduled(Schedule(mode=Autoscale(1))))
    await yard.until(ready(M, 1))
    await yard.decide(scheduled(Schedule()))
    replica = next(iter(yard.fleet.models[M].replicas))
    await yard.commit(lambda fleet: begin_drain(fleet, [replica], reason="requested", deadline_seconds=600))
    await yard.until(lambda fleet: replica not in fleet.replicas)
