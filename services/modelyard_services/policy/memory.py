"""Free memory of a node as placement counts it, and which of its devices a replica gets (rule R3).

Invariant: free is what the budget leaves over all live reservations, and never more than was measured free minus
what is reserved but not in that measurement yet; what has ended since it was taken is no part of it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy
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
        return max(0, min(_fullest(self.devices.values(), gpus), self.total // gpus))


class Gain(msgspec.Struct, frozen=True):
    """What comes free when a replica ends: in all, and by device of the budget and of the measured memory."""

    total: int
    devices: tuple[tuple[int, int, int], ...]

    def most_on(self, device: int) -> int:
        """What comes free on `device` at most."""
        return max((max(budgeted, measured) for each, budgeted, measured in self.devices if each == device), default=0)


class Space:
    """What is free on a node, to the byte and below zero too, while replicas are taken away in thought.

    Invariant: `without` and `put_back` of one replica leave it as it was.
    """

    def __init__(self, fleet: Fleet, node: NodeState, reading: NodeReading) -> None:
        self._fleet = fleet
        self._reading = reading
        self._whole = node.vram_free
        self._within_budget = _within_budget(node)
        self._measured = _measured(fleet, node, reading)
        self._gains: dict[ReplicaId, Gain] = {}

    def without(self, *replicas: ReplicaState) -> Self:
        """The space once `replicas` have ended."""
        for replica in replicas:
            self._free(replica, sign=1)
        return self

    def put_back(self, *replicas: ReplicaState) -> Self:
        """The space with `replicas` there after all."""
        for replica in replicas:
            self._free(replica, sign=-1)
        return self

    def room(self) -> Room:
        """What placement may use of it."""
        return _room(self._within_budget, self._measured, self._whole)

    def fit(self, gpus: int) -> int:
        """`room().fit(gpus)`, without the room."""
        if gpus > 1 and (len(self._within_budget) < gpus or HOST_MEMORY in self._within_budget):
            return -1
        if not self._within_budget:
            return 0
        levels = [self.level(device) for device in self._within_budget]
        # The devices' sum never binds: the `gpus` fullest alone come to that much.
        return max(0, min(_fullest(levels, gpus), self._whole // gpus))

    def climb(self, replicas: Iterable[ReplicaState], gpus: int) -> Iterator[int]:
        """`fit` as it is, and as each of `replicas` ends, one after another; this space stays as it was."""
        space = self.copy()
        yield space.fit(gpus)
        for replica in replicas:
            yield space.without(replica).fit(gpus)

    def copy(self) -> Self:
        """Another space that is as this one is now."""
        copied = copy(self)
        copied._within_budget = dict(self._within_budget)  # noqa: SLF001 - one of its own kind
        copied._measured = dict(self._measured)  # noqa: SLF001
        return copied

    def __copy__(self) -> Self:
        # The library's own way by `__reduce_ex__` takes longer than all the rest of a look at a node.
        copied = self.__class__.__new__(self.__class__)
        copied.__dict__.update(self.__dict__)
        return copied

    @property
    def whole(self) -> int:
        """What is free within the node's budget."""
        return self._whole

    @property
    def devices(self) -> Iterable[int]:
        return self._within_budget

    def level(self, device: int) -> int:
        """What is free on `device`."""
        free = self._within_budget[device]
        return min(free, self._measured.get(device, free))

    def gain(self, replica: ReplicaState) -> Gain:
        """What comes free when `replica` ends."""
        found = self._gains.get(replica.id)
        if found is None:
            held = self._fleet.reservations[replica.reservation].vram
            shown = (self._reading.visible.get(replica.id) if self._measured else None) or {}
            # The measured memory grows by what shows of the replica, or by what is held for it where that is more.
            figures = tuple(
                (each, held.get(each, 0), max(held.get(each, 0), shown.get(each, 0)))
                for each in held.keys() | shown.keys()
                if each in self._within_budget
            )
            found = self._gains[replica.id] = Gain(sum(held.values()), figures)
        return found

    def _free(self, replica: ReplicaState, *, sign: int) -> None:
        gain = self.gain(replica)
        self._whole += sign * gain.total
        for device, budgeted, measured in gain.devices:
            self._within_budget[device] += sign * budgeted
            if device in self._measured:
                self._measured[device] += sign * measured


def room(fleet: Fleet, node: NodeState, reading: NodeReading) -> Room:
    """What is free on `node` now."""
    return _room(_within_budget(node), _measured(fleet, node, reading), node.vram_free)


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


def _fullest(free: Collection[int], gpus: int) -> int:
    """What the last of the `gpus` devices has that have most."""
    return max(free) if gpus == 1 else sorted(free, reverse=True)[gpus - 1]


def _room(within_budget: Mapping[int, int], measured: Mapping[int, int], whole: int) -> Room:
    devices = {device: max(0, min(free, measured.get(device, free))) for device, free in within_budget.items()}
    return Room(devices, max(0, min(whole, sum(devices.values()))))


def _within_budget(node: NodeState) -> dict[int, int]:
    return {device: node.free_on(device) for device in node.devices}


def _measured(fleet: Fleet, node: NodeState, reading: NodeReading) -> dict[int, int]:
    """Bytes per device by the measurement, as they will be once it shows all that is held and nothing that ended."""
    if not reading.vram_free:
        return {}
    hidden, left = _hidden(fleet, node, reading), _left(fleet, node, reading)
    return {
        device: free - hidden.get(device, 0) + left.get(device, 0)
        for device, free in reading.vram_free.items()
        if device in node.devices
    }


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
    if reading.visible and reading.folded < fleet.node_sequence(node.name):
        for replica, shown in reading.visible.items():
            if replica not in fleet.replicas:
                for device, size in (shown or {}).items():
                    left[device] = left.get(device, 0) + size
    return left
