"""Placements a second of one core (its own time), each with its full account, folded before the next is decided.

    python benchmarks/placement.py [--nodes 1000 5000] [--seconds 3] [--plain]

A fleet of mixed nodes (four sizes, three zones, one in twenty pending, cordoned or lost; heartbeats for all) is
filled with 20 models of different footprints, groups and selectors; when a tenth of it is full, replicas end again.
DESIGN 8 asks for 5,000/s at 1,000 nodes and 1,100/s at 5,000.
"""

import argparse
import itertools
import time

from modelyard_events.envelope import Actor, AnyEvent, Envelope, Recorded
from modelyard_events.ids import CommandId, IncarnationId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelDefined, ModelScheduleSet
from modelyard_events.node import Gpu, NodeApproved, NodeCordoned, NodeFacts, NodeIncarnationStarted, NodeRegistered
from modelyard_events.selectors import parse_selector
from modelyard_events.spec import ModelSpec, Schedule, revision_of
from modelyard_events.telemetry import Heartbeat
from modelyard_projections.demand import Demand
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.ending import end
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import Readings, read
from modelyard_services.policy.searcher import PLAIN, Searcher

GIB = 2**30
SIZES_GIB = (24, 48, 80, 141)
PENDING, CORDONED = 3, 7
"""Of every twenty nodes, by number."""

ENVELOPE = Envelope(Actor("system", "benchmark"), CommandId("benchmark"), "benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1_000, 5_000])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--plain", action="store_true", help="judge node by node, without the index")
    arguments = parser.parse_args()
    for nodes in arguments.nodes:
        for refused in (False, True):
            rate, median_us = measure(nodes, seconds=arguments.seconds, plain=arguments.plain, refused=refused)
            what = "refusals" if refused else "placements"
            print(f"{nodes:>6} nodes: {rate:>8,.0f} {what}/s, median {median_us:,.0f} us each")


def measure(nodes: int, *, seconds: float, plain: bool, refused: bool) -> tuple[float, float]:
    """Decisions a second, and the median time of one."""
    fleet, readings = build(nodes)
    fleet.take_touched()
    index = PlacementIndex()
    search: Searcher = PLAIN if plain else index
    spent: list[int] = []
    placed: list[ReplicaId] = []
    started = time.perf_counter()
    for number in itertools.count():
        if time.perf_counter() - started > seconds:
            break
        name = ModelName("huge") if refused else ModelName(f"model-{number % 20}")
        request = Request(model=name, command=CommandId(f"c-{number}"), now_ns=fleet.time_ns)
        begin = time.thread_time_ns()
        outcome = place(fleet, readings, request, search=search)
        spent.append(time.thread_time_ns() - begin)
        apply(fleet, *outcome.events)
        index.note(fleet, fleet.take_touched())
        if outcome.replica is not None:
            placed.append(outcome.replica)
        if len(placed) > nodes // 10:
            apply(fleet, *end(fleet, [placed.pop(0)], reason="requested"))
            index.note(fleet, fleet.take_touched())
    return len(spent) / (sum(spent) / 1e9), sorted(spent)[len(spent) // 2] / 1e3


def build(nodes: int) -> tuple[Fleet, Readings]:
    """A fleet, and what its heartbeats said."""
    fleet, demand = Fleet(), Demand()
    for number in range(nodes):
        name = NodeName(f"node-{number:05}")
        apply(fleet, *node_events(name, number))
        free: dict[int, int | None] = dict.fromkeys(range(2), SIZES_GIB[number % 4] * GIB)
        demand.hear_node(Heartbeat(name, IncarnationId(name), 0, vram_free=free), now_ns=0)
    for number in range(20):
        groups = ("heavy",) if number % 10 == 0 else ()
        spec = ModelSpec(command=("serve", str(number)), vram=(1 + number) * GIB, concurrency_groups=groups)
        apply(fleet, ModelDefined(model=f"model-{number}", spec=spec, revision=revision_of(spec)))
        schedule = Schedule(node_selector=parse_selector("zone in (a,b)" if number % 2 else ""))
        apply(fleet, ModelScheduleSet(model=f"model-{number}", schedule=schedule, source="api"))
    spec = ModelSpec(command=("serve", "huge"), vram=142 * GIB)
    apply(fleet, ModelDefined(model="huge", spec=spec, revision=revision_of(spec)))
    return fleet, read(fleet, demand, heard_ns=0)


def node_events(name: NodeName, number: int) -> list[AnyEvent]:
    gpus = tuple(Gpu(index, "nvidia", "GPU", SIZES_GIB[number % 4] * GIB) for index in range(2))
    facts = NodeFacts("10.0.0.1:1", gpus, max_replicas_per_model=2, labels={"zone": "abc"[number % 3]})  # type: ignore[dict-item]
    events: list[AnyEvent] = [
        NodeRegistered(node=name, node_type="backend"),
        NodeIncarnationStarted(node=name, incarnation=IncarnationId(name), facts=facts, secret_digest=""),
    ]
    if number % 20 != PENDING:
        events.append(NodeApproved(node=name))
    if number % 20 == CORDONED:
        events.append(NodeCordoned(node=name))
    return events


def apply(fleet: Fleet, *events: AnyEvent) -> None:
    for event in events:
        sequence = fleet.sequence + 1
        fleet.apply(Recorded(sequence, sequence * 1_000_000, ENVELOPE.event_id(sequence), event, ENVELOPE))


if __name__ == "__main__":
    main()
