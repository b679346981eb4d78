"""What a look at the machine tells that the log doesn't know yet: a GPU lost or found, a footprint that grew. Pure.

Invariant: nothing is told that the node's own events say already, so a look that finds nothing new tells nothing (N8).
"""

from collections.abc import Iterable, Iterator

from modelyard_events.node import NodeFacts
from modelyard_events.requests import CapacityChanged, Measured
from modelyard_events.telemetry import ReplicaReading
from modelyard_projections.fleet import Fleet, NodeState, Ready
from modelyard_services.policy.facts import is_material


def news(
    fleet: Fleet, node: NodeState, *, now: NodeFacts, readings: Iterable[ReplicaReading]
) -> Iterator[CapacityChanged | Measured]:
    """The facts to tell of `node`, which has `now` what it has and runs what the readings say."""
    # RAM and disk are told along: by themselves they change with every container's limit and file system's whim.
    if now.gpus != node.facts.gpus:
        yield CapacityChanged(now.gpus, now.vram_total, now.ram_total, now.disk_total)
    for reading in readings:
        memory = _unknown_of(fleet, reading)
        if memory:
            yield Measured(reading.replica, memory)


def _unknown_of(fleet: Fleet, reading: ReplicaReading) -> dict[int, int]:
    """Bytes by device that a ready replica is to be resized to; none where that changes little.

    What a process once took it may take again, so a measured one only grows (rule R3).
    """
    state = fleet.replicas.get(reading.replica)
    if state is None or not isinstance(state.phase, Ready) or not reading.memory:
        return {}
    held = fleet.reservations[state.reservation].vram
    first = state.footprint_rule != "measured"
    told = {device: size for device, size in reading.memory.items() if first or size > held.get(device, 0)}
    return told if is_material(held, told) else {}
