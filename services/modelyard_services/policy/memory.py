"""Free memory of a node as placement counts it, and which of its devices a replica gets (rule R3).

Invariant: free is what the budget leaves over all live reservations, and never more than was measured free minus
what is reserved but not in that measurement yet; what has ended since it was taken is no part of it.
"""

from collections.abc import Mapping
from typing import Self

import msgspec

from modelyard_events.ids import ReplicaId
from modelyard_events.node import HOST_MEMORY
from modelyard_events.reservation import ReplicaHolder
from modelyard_projections.fleet import Fleet, NodeState, ReplicaState
from modelyard_services.policy.readings import NodeReading


class Room(msgspec.Struct, frozen=True):
    """Bytes free on each device, and on the node as a whole, where a budget may leave less than their sum."""

    devices: dict[int, int]
    total: int

    def fit(self, gpus: int) -> int:
        """The most bytes a device that `gpus` devices can each take; -1 where there are too few devices."""
        if gpus > 1 and (len(self.devices) < gpus or HOST_MEMORY in self.devices):
            return -1
        if not self.devices:
            return 0
        free = sorted(self.devices.values(), reverse=True)
        return max(0, min(free[gpus - 1], self.total // gpus))


class Space:
    """What is free on a node, to the byte and below zero too, while replicas are taken away in thought.

    Invariant: `add` and `remove` of one replica leave it as it was.
    """

    def __init__(self, fleet: Fleet, node: NodeState, reading: NodeReading) -> None:
        self._fleet = fleet
        self._reading = reading
        self._whole = node.vram_free
        self._within_budget = {device: node.free_on(device) for device in node.devices}
        hidden = _hidden(fleet, node, reading) if reading.vram_free else {}
        left = _left(fleet, node, reading) if reading.vram_free else {}
        self._measured = {
            device: free - hidden.get(device, 0) + left.get(device, 0)
            for device, free in reading.vram_free.items()
            if device in self._within_budget
        }

    def without(self, *replicas: ReplicaState) -> Self:
        """The space once `replicas` have ended."""
        for replica in replicas:
            self._free(replica, sign=1)
        return self

    def put_back(self, replica: ReplicaState) -> None:
        """`replica` stays after all."""
        self._free(replica, sign=-1)

    def room(self) -> Room:
        """What placement may use of it."""
        devices = {
            device: max(0, min(free, self._measured.get(device, free))) for device, free in self._within_budget.items()
        }
        return Room(devices, max(0, min(self._whole, sum(devices.values()))))

    def _free(self, replica: ReplicaState, *, sign: int) -> None:
        held = self._fleet.reservations[replica.reservation].vram
        self._whole += sign * sum(held.values())
        for device, size in held.items():
            if device in self._within_budget:
                self._within_budget[device] += sign * size
        if self._measured:
            for device, size in _measurable(held, self._reading, replica.id).items():
                if device in self._measured:
                    self._measured[device] += sign * size


def room(fleet: Fleet, node: NodeState, reading: NodeReading) -> Room:
    """What is free on `node` now."""
    return Space(fleet, node, reading).room()


def empty_room(node: NodeState) -> Room:
    """What would be free if nothing at all were on `node`: its budget."""
    return Room(node.devices, node.budget)


def choose_devices(free: Room, *, gpus: int, per_gpu: int | None, binpack: bool) -> dict[int, int]:
    """Bytes to reserve per device: the fullest that fit for binpack, else the emptiest; ties by index.

    Without a known footprint all that is free on the chosen devices is held.
    """
    if per_gpu == 0 or not free.devices:
        return {}
    fitting = [(size, device) for device, size in free.devices.items() if size >= (per_gpu or 1)]
    fitting.sort(key=lambda entry: (entry[0] if binpack else -entry[0], entry[1]))
    chosen = fitting[:gpus]
    if per_gpu is not None:
        return {device: per_gpu for _, device in chosen}
    return _bounded({device: size for size, device in chosen}, total=free.total)


def _bounded(wanted: Mapping[int, int], *, total: int) -> dict[int, int]:
    """`wanted`, cut so that its sum stays within the node's own budget; no device goes without (rule P6)."""
    if sum(wanted.values()) <= total:
        return dict(wanted)
    return {device: min(size, total // len(wanted)) for device, size in wanted.items()}


def _hidden(fleet: Fleet, node: NodeState, reading: NodeReading) -> dict[int, int]:
    """Bytes per device that replicas hold but the measurement doesn't show yet.

    Operators' reservations are left out: the budget holds them already, and whether their job has begun, so that
    it shows, nobody can tell.
    """
    hidden: dict[int, int] = {}
    for identity in node.reservations:
        reservation = fleet.reservations[identity]
        if not isinstance(reservation.holder, ReplicaHolder):
            continue
        shown = reading.visible.get(reservation.holder.replica, {})
        if shown is not None:
            for device, size in reservation.vram.items():
                hidden[device] = hidden.get(device, 0) + max(0, size - shown.get(device, 0))
    return hidden


def _left(fleet: Fleet, node: NodeState, reading: NodeReading) -> dict[int, int]:
    """Bytes per device that the measurement shows of replicas which have ended since.

    One that its worker lists although it knows of the end is a process that lives on: what it has is not free.
    """
    left: dict[int, int] = {}
    if reading.folded < fleet.node_sequence(node.name):
        for replica, shown in reading.visible.items():
            if replica not in fleet.replicas:
                for device, size in (shown or {}).items():
                    left[device] = left.get(device, 0) + size
    return left


def _measurable(held: Mapping[int, int], reading: NodeReading, replica: ReplicaId) -> Mapping[int, int]:
    """Bytes per device by which the measured free memory, less what it hides, grows when the replica ends."""
    shown = reading.visible.get(replica, {})
    if shown is None:
        return held
    return {device: max(held.get(device, 0), shown.get(device, 0)) for device in {*held, *shown}}
