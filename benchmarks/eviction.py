"""How long a full fleet takes to make room, or to say that nobody can: one decision each, folded by nobody.

    python -m benchmarks.eviction [--nodes 200 1000] [--seconds 2]

Every node holds 20 replicas and no byte more. `plan` finds the cheapest room over all nodes; `refusal` finds none,
since each device has a replica that is pinned, and tells who is in the way. `still` asks again of the same readings;
`moving` has one replica in fifty used, begun or finished since the last question, and one node in fifty heard anew.
Beside each the exhaustive search, which tries every node each time.
"""

import argparse
import os
import platform
import random
import statistics
import time
from collections.abc import Iterator

import msgspec
from benchmarks.placement import GIB, apply

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import CommandId, ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelDefined, ModelScheduleSet
from modelyard_events.spec import Autoscale, ModelSpec, Schedule, revision_of
from modelyard_projections.fleet import Fleet
from modelyard_services.policy.identity import replica_id
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.placement import Request, place
from modelyard_services.policy.readings import NodeReading, Readings
from modelyard_services.policy.searcher import PLAIN, Searcher
from tests.support.given import a_ready_replica, an_approved_node

REPLICAS = 20
"""On each node, of as many models."""

MODELS = 500
PINNED = 25
"""The first of them."""

FLOORED = 11
"""Of every twenty models, by number."""

REPLICA_GIB = 8
DECISIONS_MIN = 4

MOVED = 0.02
"""The share of the fleet that changes between two questions."""

PLANNED, REFUSED = ModelName("planned"), ModelName("refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[200, 1_000])
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    arguments = parser.parse_args()
    print(f"python {platform.python_version()}, {os.cpu_count()} cores; medians of one core's own time, in ms")
    print(f"{'nodes':>6} {'decision':>10} {'readings':>9} {'index':>8} {'exhaustive':>11} {'ratio':>7}")
    for nodes in arguments.nodes:
        fleet, readings = build(nodes)
        for model in (PLANNED, REFUSED):
            for moving in (False, True):
                index = PlacementIndex()
                fast = measure(fleet, readings, model, search=index, moving=moving, seconds=arguments.seconds)
                slow = measure(fleet, readings, model, search=PLAIN, moving=moving, seconds=arguments.seconds)
                what, how = "plan" if model == PLANNED else "refusal", "moving" if moving else "still"
                print(f"{nodes:>6} {what:>10} {how:>9} {fast:>8.2f} {slow:>11.2f} {slow / fast:>6.0f}x")


def measure(
    fleet: Fleet, readings: Readings, model: ModelName, *, search: Searcher, moving: bool, seconds: float
) -> float:
    """The median time of a decision in milliseconds; the first, which enters the whole fleet, is left out."""
    request = Request(model=model, command=CommandId("c"), now_ns=NOW_NS)
    following = moved(fleet, readings) if moving else iter(lambda: readings, None)
    spent: list[int] = []
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds or len(spent) < DECISIONS_MIN:
        seen = next(following)
        start = time.thread_time_ns()
        outcome = place(fleet, seen, request, search=search)
        spent.append(time.thread_time_ns() - start)
        if (outcome.refused is None) != (model == PLANNED):
            raise AssertionError(f"{model} came to {outcome.refused}")
    return statistics.median(spent[1:]) / 1e6


def moved(fleet: Fleet, readings: Readings) -> Iterator[Readings]:
    """`readings` as they go on: uses, leases that begin and end, heartbeats."""
    chance = random.Random(1)  # noqa: S311 - load, not a secret
    replicas, nodes = list(fleet.replicas), list(fleet.nodes)
    now_ns = NOW_NS - 10**9
    while True:
        yield readings
        now_ns += 1_000
        used, busy, heard = dict(readings.last_used_ns), dict(readings.in_flight), dict(readings.nodes)
        for replica in chance.sample(replicas, round(len(replicas) * MOVED)):
            used[replica] = now_ns
            if busy.pop(replica, None) is None and chance.random() < BUSY_SHARE:
                busy[replica] = 1
        for node in chance.sample(nodes, round(len(nodes) * MOVED)):
            heard[node] = msgspec.structs.replace(heard[node], disk_free=now_ns)
        readings = Readings(heard, busy, used, knows_routers=True)


BUSY_SHARE = 0.3
NOW_NS = 10**15


def build(nodes: int) -> tuple[Fleet, Readings]:
    """A full fleet whose replicas are old, three in ten of them busy, two of each node pinned."""
    chance = random.Random(0)  # noqa: S311 - load, not a secret
    fleet = Fleet()
    for number in range(MODELS):
        define(fleet, ModelName(f"model-{number}"), REPLICA_GIB, pinned=number < PINNED)
        if number % 20 == FLOORED:
            schedule = Schedule(mode=Autoscale(nodes * REPLICAS // MODELS))
            apply(fleet, ModelScheduleSet(model=f"model-{number}", schedule=schedule, source="api"))
    define(fleet, PLANNED, 3 * REPLICA_GIB)
    define(fleet, REFUSED, REPLICAS // 2 * REPLICA_GIB)
    for number in range(nodes):
        apply(fleet, *node_events(f"node-{number:05}", chance))
    busy = {replica: 1 for replica in fleet.replicas if chance.random() < BUSY_SHARE}
    used = {replica: chance.randrange(NOW_NS // 2) for replica in fleet.replicas}
    return fleet, Readings(dict(heartbeats(fleet)), busy, used, knows_routers=True)


def define(fleet: Fleet, model: ModelName, gib: int, *, pinned: bool = False) -> None:
    spec = ModelSpec(command=("serve", model), vram=gib * GIB, pinned=pinned)
    apply(fleet, ModelDefined(model=model, spec=spec, revision=revision_of(spec)))


def node_events(node: str, chance: random.Random) -> list[AnyEvent]:
    """Two devices, ten replicas on each."""
    events: list[AnyEvent] = list(an_approved_node(node, gpus=2, vram=REPLICAS // 2 * REPLICA_GIB * GIB))
    others = chance.sample(range(PINNED, MODELS), REPLICAS - 2)
    for place_on, model in enumerate([*chance.sample(range(PINNED), 2), *others]):
        vram = {place_on % 2: REPLICA_GIB * GIB}
        replica = replica_id(CommandId(f"{node}/{place_on}"), 0)
        events += a_ready_replica(replica, node=node, model=f"model-{model}", vram=vram)
    return events


def heartbeats(fleet: Fleet) -> Iterator[tuple[NodeName, NodeReading]]:
    """All replicas measured as large as was reserved for them."""
    for node in fleet.nodes.values():
        shown: dict[ReplicaId, dict[int, int] | None] = {
            state.id: fleet.reservations[state.reservation].vram for state in fleet.replicas_on(node.name)
        }
        yield node.name, NodeReading(dict.fromkeys(node.devices, 0), shown)


if __name__ == "__main__":
    main()
