"""What a look at the machine tells the log: only what it doesn't know (rules N8, N9, R3, R4, W6)."""

from modelyard_events.ids import NodeName, ReplicaId, Revision
from modelyard_events.node import Gpu
from modelyard_events.replica import Process
from modelyard_events.requests import CapacityChanged, Fact, Measured
from modelyard_events.telemetry import ReplicaReading
from modelyard_projections.fleet import Fleet
from modelyard_services.worker.agent.news import news
from modelyard_services.worker.processes.keys import process_key
from tests.support.given import GIB, a_loading_replica, a_model, a_ready_replica, an_approved_node, given, some_facts

N1 = NodeName("n1")


def a_fleet(*, vram: dict[int, int], rule: str = "measured", ready: bool = True) -> Fleet:
    build = a_ready_replica if ready else a_loading_replica
    return given(*an_approved_node(gpus=2), *a_model(), *build(vram=vram, footprint_rule=rule)).fleet


def told(fleet: Fleet, memory: dict[int, int] | None, *, gpus: int = 2) -> list[Fact]:
    reading = ReplicaReading(
        replica=ReplicaId("r-1"),
        key=process_key("m", 0),
        revision=Revision("x"),
        activity="ready",
        process=Process(pid=1, started_at=1.0, port=1),
        address="n1:1",
        memory=memory,
    )
    return list(news(fleet, fleet.nodes[N1], now=some_facts(gpus=gpus), readings=[reading]))


def test_a_lost_gpu_is_told_and_one_that_is_back_too() -> None:
    """N8."""
    fleet = a_fleet(vram={0: GIB})
    facts = some_facts(gpus=1)
    (fact,) = told(fleet, None, gpus=1)
    assert fact == CapacityChanged((Gpu(0, "nvidia", "Test GPU", 24 * GIB),), facts.vram_total, facts.ram_total)
    assert told(fleet, None) == []


def test_a_footprint_that_grew_is_told_of_the_gpu_where_it_did() -> None:
    """R3: what a process once took it may take again, so none shrinks."""
    fleet = a_fleet(vram={0: 4 * GIB, 1: 4 * GIB})
    assert told(fleet, {0: 3 * GIB, 1: 6 * GIB}) == [Measured(ReplicaId("r-1"), {1: 6 * GIB})]
    assert told(fleet, {0: 3 * GIB, 1: 4 * GIB + 2**20}) == []


def test_a_gpu_that_it_was_not_given_is_told_when_it_uses_it() -> None:
    """I1: what is used there is in the books, whoever gave it."""
    assert told(a_fleet(vram={0: 4 * GIB}), {0: 4 * GIB, 1: GIB}) == [Measured(ReplicaId("r-1"), {1: GIB})]


def test_the_first_measurement_is_told_whichever_way_it_differs() -> None:
    """R4: one that couldn't be measured when it was loaded would have its node for itself for ever."""
    fleet = a_fleet(vram={0: 24 * GIB}, rule="unknown")
    assert told(fleet, {0: 2 * GIB}) == [Measured(ReplicaId("r-1"), {0: 2 * GIB})]


def test_nothing_is_told_of_a_load_or_of_what_nobody_can_measure() -> None:
    """R3, X5, N9."""
    assert told(a_fleet(vram={0: GIB}, ready=False), {0: 9 * GIB}) == []
    assert told(a_fleet(vram={0: GIB}), None) == []
    assert told(given(*an_approved_node(gpus=2)).fleet, {0: 9 * GIB}) == []
