"""Making room: which replicas of one node go, so that a newcomer fits in their place (rules P3, P4, I5).

```
residents ──▶ those free to go, cheapest first ──▶ all taken away in thought: does it fit? ── no ──▶ who is in the way
                                                        │ yes
                                                        ▼
                            put back one by one, dearest first, what isn't needed ──▶ the node's plan
```

Invariant: a plan frees enough and no part of it would; of all plans in the selector the cheapest is taken. By last
use, plan A is cheaper than B where the most recently used replica that they don't share is B's; by size, where it
takes fewer.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from modelyard_events.ids import ReplicaId
from modelyard_events.replica import EndReason
from modelyard_projections.fleet import NodeState, ReplicaState
from modelyard_services.policy.filters import (
    FIXED_FILTERS,
    Scene,
    backing_off,
    disk_short,
    fits_when_empty,
    node_full,
    shared_groups,
    vram_rejection,
)
from modelyard_services.policy.limits import max_loaded_models
from modelyard_services.policy.memory import Space, choose_devices
from modelyard_services.policy.victims import Resident, Spares, residents

UNHELPFUL: Final = (*FIXED_FILTERS.values(), disk_short, node_full, backing_off)
"""What no eviction changes."""

LOOKED_INTO_MAX: Final = 8
"""Nodes looked into for what would help, when no plan exists: the closest, for a fleet has thousands."""

Cost = tuple[object, ...]

Distance = tuple[int, int, str]
"""How far a node is from a plan: memory missing, replicas in the way, its name."""


class Victim(msgspec.Struct, frozen=True):
    """A replica that ends to make room, and what for."""

    resident: Resident
    reason: EndReason

    @property
    def state(self) -> ReplicaState:
        return self.resident.state


class Plan(msgspec.Struct, frozen=True):
    """Room on `node`: who ends for it, who is `leaving` anyway, and what the newcomer then holds."""

    node: NodeState
    victims: tuple[Victim, ...]
    leaving: tuple[ReplicaId, ...]
    held: dict[int, int]
    index: int

    @property
    def waits_for(self) -> tuple[ReplicaId, ...]:
        return (*(victim.state.id for victim in self.victims), *self.leaving)


class Blocked(msgspec.Struct, frozen=True):
    """Why no eviction helps on `node`: the filter that still rejects it, and the residents in the way.

    `short` is the memory missing when all have gone that may; `keys` are those of whom one alone would do.
    """

    node: NodeState
    filter: str
    holders: tuple[Resident, ...]
    short: int | None
    keys: tuple[Resident, ...] = ()

    @property
    def distance(self) -> Distance:
        return self.short or 0, len(self.holders), self.node.name


class Search(msgspec.Struct, frozen=True):
    """The cheapest plan; without one, the node that is closest to having one."""

    plan: Plan | None = None
    blocked: Blocked | None = None


def make_room(scene: Scene, nodes: Iterable[NodeState]) -> Search:
    """The cheapest plan over `nodes`, by a trial on each: the plain form, which says what a faster one must answer."""
    spares: Spares = {}
    plan, blocked = first_cheapest(
        ((), Trial(scene, node, residents(scene, scene.fleet.replicas_on(node.name), spares)))
        for node in nodes
        if node.replicas and could_help(scene, node)
    )
    return Search(plan) if plan is not None else Search(blocked=nearest(blocked))


def first_cheapest(trials: Iterable[tuple[Cost, "Trial"]]) -> tuple[Plan | None, list["Held"]]:
    """The cheapest plan of `trials`, which come by what a plan of theirs costs at least; and those that have none."""
    best: tuple[Cost, Plan] | None = None
    held: list[Held] = []
    for at_least, trial in trials:
        if best is not None and best[0] < at_least:
            break
        found = trial.plan()
        if isinstance(found, Blocked):
            held.append((found, trial))
        elif best is None or found[0] < best[0]:
            best = found
    return None if best is None else best[1], held


def nearest(held: Iterable["Held"]) -> Blocked | None:
    """The node that is closest to a plan: one replica in the way, or the least memory missing."""
    closest = heapq.nsmallest(
        LOOKED_INTO_MAX, (each for each in held if each[0].holders), key=lambda each: each[0].distance
    )
    looked_into: list[Blocked] = []
    for blocked, trial in closest:
        looked_into.append(trial.with_keys(blocked))
        if looked_into[-1].keys:
            return looked_into[-1]
    return looked_into[0] if looked_into else None


class Trial:
    """One node with some of its residents taken away in thought."""

    def __init__(self, scene: Scene, node: NodeState, members: Sequence[Resident]) -> None:
        self._scene, self._node, self._members = scene, node, members
        self._space = Space(scene.fleet, node, scene.readings.of(node.name))
        self._gone: dict[ReplicaId, Resident] = {}
        self._models = Counter(each.state.model for each in members)
        self._in_way = {each.state.id for each in members if shared_groups(scene.wish, each.state)}
        self._by_size = scene.fleet.settings.eviction_order == "size"

    def plan(self) -> tuple[Cost, Plan] | Blocked:
        """The cheapest plan of this node with its cost."""
        pool = self._pool()
        for each in pool:
            self._take(each)
        if self._lack() == "loaded_limit":
            pool += self._young_for_the_limit()
        lack = self._lack()
        if lack is not None:
            return self._blocked(lack)
        return min((self._prune(order) for order in self._orders(pool)), key=lambda found: found[0])

    def with_keys(self, blocked: Blocked) -> Blocked:
        """`blocked`, as `plan` has just found it, with those of its holders whose end alone would do."""
        keys = []
        for each in blocked.holders:
            self._take(each)
            if self._lack() is None:
                keys.append(each)
            self._put_back(each)
        return msgspec.structs.replace(blocked, keys=tuple(keys))

    def _pool(self) -> list[Resident]:
        """All that may go for memory, and whoever holds one of the groups, however young (rule P4)."""
        return [
            each for each in self._members if each.goes or (each.obstacle == "young" and each.state.id in self._in_way)
        ]

    def _young_for_the_limit(self) -> list[Resident]:
        """Young ones go for the limit where no others suffice, least recently used first, whole models only."""
        taken: list[Resident] = []
        for model in dict.fromkeys(each.state.model for each in self._members):
            staying = [e for e in self._members if e.state.model == model and e.state.id not in self._gone]
            if staying and model != self._scene.wish.model and all(each.obstacle == "young" for each in staying):
                for each in staying:
                    self._take(each)
                taken += staying
                if self._lack() != "loaded_limit":
                    break
        return taken

    def _orders(self, pool: list[Resident]) -> list[list[Resident]]:
        """`pool` from those who go first to those who go last; each order leads to one plan."""
        by_use = sorted(pool, key=lambda each: (not each.leaving, each.used_ns, each.state.id))
        if not self._by_size:
            return [by_use]
        held = {each.state.id: self._scene.fleet.reservations[each.state.reservation].vram for each in pool}
        by_size = sorted(by_use, key=lambda each: (not each.leaving, -sum(held[each.state.id].values())))
        # Where one device is to be freed, whoever is large elsewhere doesn't help.
        devices = self._node.devices if self._scene.wish.gpus == 1 else {}
        return [
            by_size,
            *(
                sorted(by_use, key=lambda each, device=device: (not each.leaving, -held[each.state.id].get(device, 0)))  # type: ignore[misc]
                for device in devices
            ),
        ]

    def _prune(self, order: list[Resident]) -> tuple[Cost, Plan]:
        """The plan that is left when those who go last stay wherever it fits without them."""
        for each in order:
            self._take(each)
        for each in reversed(order):
            self._put_back(each)
            if self._lack() is not None:
                self._take(each)
        plan = self._decided([each for each in order if each.state.id in self._gone])
        return self._cost(plan), plan

    def _decided(self, going: list[Resident]) -> Plan:
        wish = self._scene.wish
        victims = tuple(Victim(each, self._reason(each)) for each in going if not each.leaving)
        held = choose_devices(self._space.room(), gpus=wish.gpus, per_gpu=wish.per_gpu, binpack=wish.binpack)
        leaving = tuple(each.state.id for each in going if each.leaving)
        return Plan(self._node, victims, leaving, held, self._free_index())

    def _reason(self, victim: Resident) -> EndReason:
        if victim.state.id in self._in_way:
            return "evicted_group"
        self._put_back(victim)
        lack = self._lack()
        self._take(victim)
        return "evicted_lru" if lack == "loaded_limit" else "evicted_memory"

    def _cost(self, plan: Plan) -> Cost:
        used = tuple(sorted((victim.resident.used_ns for victim in plan.victims), reverse=True))
        if not self._by_size:
            return used, len(plan.leaving), self._node.name
        reservations = self._scene.fleet.reservations
        freed = sum(sum(reservations[victim.state.reservation].vram.values()) for victim in plan.victims)
        return len(used), freed, used, len(plan.leaving), self._node.name

    def _take(self, each: Resident) -> None:
        if each.state.id not in self._gone:
            self._gone[each.state.id] = each
            self._models[each.state.model] -= 1
            self._space.without(each.state)

    def _put_back(self, each: Resident) -> None:
        del self._gone[each.state.id]
        self._models[each.state.model] += 1
        self._space.put_back(each.state)

    def _lack(self) -> str | None:
        """The first filter that still rejects the node."""
        wish, limit = self._scene.wish, max_loaded_models(self._scene.fleet, self._node)
        if not self._in_way <= self._gone.keys():
            return "concurrency_group"
        if limit and sum(count > 0 for model, count in self._models.items() if model != wish.model) >= limit:
            return "loaded_limit"
        taken = len(self._taken_slots())
        if wish.max_per_node is not None and taken >= wish.max_per_node:
            return "max_per_node"
        if taken >= self._node.max_replicas_per_model:
            return "slot"
        if self._not_exclusive():
            return "exclusive"
        return "vram" if self._short() is not None else None

    def _taken_slots(self) -> set[int]:
        slots = self._node.slots.get(self._scene.wish.model, {})
        return {index for index, replica in slots.items() if replica not in self._gone}

    def _free_index(self) -> int:
        taken = self._taken_slots()
        return next(index for index in range(len(taken) + 1) if index not in taken)

    def _not_exclusive(self) -> bool:
        staying = len(self._gone) < len(self._members)
        if self._scene.wish.per_gpu is None:
            return staying
        return any(each.state.exclusive and each.state.id not in self._gone for each in self._members)

    def _short(self) -> int | None:
        wish = self._scene.wish
        rejected = vram_rejection(wish, self._node, self._space.fit(wish.gpus))
        return rejected.figure if rejected is not None and isinstance(rejected.figure, int) else None

    def _blocked(self, lack: str) -> Blocked:
        holders = [each for each in self._members if each.state.id not in self._gone]
        if lack == "concurrency_group":
            holders = [each for each in holders if each.state.id in self._in_way]
        if lack in {"slot", "max_per_node"}:
            holders = []  # its own limits are in the way, and no other model
        return Blocked(self._node, lack, tuple(holders), self._short() if lack == "vram" else None)


def could_help(scene: Scene, node: NodeState) -> bool:
    """Whether an eviction on `node` might: nothing stands against it but what residents hold."""
    return all(judge(scene, node) is None for judge in UNHELPFUL) and fits_when_empty(scene, node)


Held = tuple[Blocked, Trial]
"""A trial that found no plan, and why."""
