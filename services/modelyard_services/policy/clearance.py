"""How far one node can be cleared: who may go, in which order, and how much is free as they do (rules P3, P4).

```
tenants ──▶ leaving, then going, least recently used first      young      the others, who stay
                 │
                 ▼
fits  [ as it is, without the first, without the first two, ... ]      never falls; found as far as asked
```

Invariant: what `outlook` says that a plan costs at least is never more than a trial on the node finds; where it says
that there is none, a trial finds none, at the same distance.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final, Literal, assert_never

import msgspec

from modelyard_events.ids import ModelName, ReplicaId
from modelyard_projections.fleet import Draining, Fleet, Loading, NodeState, Placed, Ready, ReplicaState
from modelyard_services.policy.eviction import Cost, Distance
from modelyard_services.policy.filters import Scene, Wish, shared_groups, vram_needed
from modelyard_services.policy.limits import max_loaded_models
from modelyard_services.policy.memory import Space
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.victims import Spares, is_pinned, matures_ns, residents, settled_ns, spare, used_ns

Way = Literal["stays", "leaves", "drains", "ready"]
"""What a replica's own state says of its going: `drains` and `ready` ones go while nothing is on them."""

EVER: Final = 2**63
"""Later than any time of the log's clock."""

OUTLOOKS_MAX: Final = 16
"""Sizes for which a node keeps its outlook: those who wait ask again for the same few."""

NOBODY: Final = Wish(model=ModelName(""), now_ns=0)
"""No model has this name: judged for its wish, nobody is a sibling."""


class Tenant(msgspec.Struct, frozen=True):
    """A replica with all of it that no reading changes."""

    state: ReplicaState
    way: Way
    settled_ns: int
    matures_ns: int


Goer = tuple[int, ReplicaId, ReplicaState]
"""Who may go, with its last use; in the order of those."""


class Outlook(msgspec.Struct, frozen=True):
    """What a trial would find: a plan that costs at least so much, or none at a distance; else nobody in the way."""

    at_least: Cost | None = None
    distance: Distance | None = None


class Clearance:
    """One node, judged for nobody in particular."""

    def __init__(self, fleet: Fleet, node: NodeState, spares: Spares, *, knows_routers: bool) -> None:
        self.node = node
        self._fleet = fleet
        self._spares = spares
        self._tenants = [_tenant(fleet, state, spares, knows_routers) for state in fleet.replicas_on(node.name)]
        self.models = frozenset(each.state.model for each in self._tenants)
        self._groups = frozenset(group for each in self._tenants for group in each.state.groups)
        self._exclusive = any(each.state.exclusive for each in self._tenants)
        ready = Counter(each.state.model for each in self._tenants if each.way == "ready")
        self._limited = any(count > (spares[model] or count) for model, count in ready.items())
        self._space: Space | None = None
        self._cleared: dict[int, int] = {}
        self._climbs: dict[int, _Climb] = {}
        self._outlooks: dict[tuple[int, int | None], Outlook] = {}
        self._steps: dict[int, _Steps] = {}
        self._leaving: list[ReplicaState] = []
        self._going: list[Tenant] = []
        self._by_use: list[Goer] | None = None
        self._young: set[ReplicaId] = set()
        self._since_ns = self._until_ns = EVER

    def measure(self) -> None:
        """Note that the node's heartbeat changed."""
        self._space = None
        self._forget_fits()

    def turn(self) -> None:
        """Note that a replica became busy or idle."""
        self._since_ns = EVER

    def use(self) -> None:
        """Note that an idle replica was used in between: who may go stays, but in another order."""
        if self._limited:
            self._since_ns = EVER
        self._by_use = None
        self._forget_climbs()

    def judge(self, readings: Readings, now_ns: int) -> None:
        """Find who may go now, unless that is known."""
        if self._since_ns <= now_ns < self._until_ns:
            return
        self._sort(readings, now_ns)
        if self._limited:
            self._keep_floors(readings, now_ns)
        self._by_use = None
        self._forget_fits()

    def outlook(self, readings: Readings, wish: Wish) -> Outlook:
        """What a trial of `wish` would find, by what `judge` found."""
        if self._space is None:
            self._space = Space(self._fleet, self.node, readings.of(self.node.name))
        touches = wish.model in self.models or not self._groups.isdisjoint(wish.groups)
        if touches or wish.per_gpu is None or self._exclusive or max_loaded_models(self._fleet, self.node):
            return self._outlook_among(readings, wish, self._space)
        asked = (wish.gpus, wish.per_gpu)
        known = self._outlooks.get(asked)
        if known is None:
            if len(self._outlooks) >= OUTLOOKS_MAX:
                self._outlooks.clear()
            known = self._outlooks[asked] = self._outlook_alone(readings, wish, self._space)
        return known

    def _outlook_alone(self, readings: Readings, wish: Wish, space: Space) -> Outlook:
        """`outlook` where memory alone is in the way."""
        needed, cleared = vram_needed(wish, self.node), self._cleared_for(wish.gpus, space)
        if cleared >= needed:
            return Outlook(self._at_least(readings, wish, space))
        return self._held(needed - max(cleared, 0), len(self._tenants) - len(self._leaving) - len(self._going))

    def _sort(self, readings: Readings, now_ns: int) -> None:
        busy = readings.in_flight
        self._leaving, self._going, self._young = [], [], set()
        self._since_ns, self._until_ns = 0, EVER
        for each in self._tenants:
            state = each.state
            if each.way == "stays" or (each.way != "leaves" and busy.get(state.id)):
                continue
            if each.way != "ready":
                self._leaving.append(state)
            elif now_ns < each.matures_ns:
                self._young.add(state.id)
                self._until_ns = min(self._until_ns, each.matures_ns)
            else:
                self._going.append(each)
                self._since_ns = max(self._since_ns, each.matures_ns)

    def _keep_floors(self, readings: Readings, now_ns: int) -> None:
        """Of a model with more replicas here than may go, only some do; who they are, `residents` alone says."""
        scene = Scene(self._fleet, readings, msgspec.structs.replace(NOBODY, now_ns=now_ns))
        judged = residents(scene, (each.state for each in self._tenants), self._spares)
        held_back = {each.state.id for each in judged if each.obstacle == "at_min"}
        self._going = [each for each in self._going if each.state.id not in held_back]
        self._young -= held_back

    def _forget_fits(self) -> None:
        self._cleared.clear()
        self._forget_climbs()

    def _forget_climbs(self) -> None:
        self._outlooks.clear()
        self._climbs.clear()
        self._steps.clear()

    def _order(self, readings: Readings) -> list[Goer]:
        """Those who may go, least recently used first."""
        if self._by_use is None:
            used = readings.last_used_ns
            self._by_use = sorted(
                (max(used.get(each.state.id, 0), each.settled_ns), each.state.id, each.state) for each in self._going
            )
        return self._by_use

    def _cleared_for(self, gpus: int, space: Space) -> int:
        """What fits once all have gone that may."""
        cleared = self._cleared.get(gpus)
        if cleared is None:
            going = (each.state for each in self._going)
            cleared = self._cleared[gpus] = space.copy().without(*self._leaving, *going).fit(gpus)
        return cleared

    def _at_least(self, readings: Readings, wish: Wish, space: Space) -> Cost:
        """What freeing the memory costs at least."""
        needed, order = vram_needed(wish, self.node), self._order(readings)
        if self._fleet.settings.eviction_order == "size":
            if wish.gpus not in self._steps:
                self._steps[wish.gpus] = _Steps(space.copy().without(*self._leaving), order, wish.gpus)
            return self._steps[wish.gpus].at_least(needed)
        if wish.gpus not in self._climbs:
            states = [*self._leaving, *(state for _, _, state in order)]
            self._climbs[wish.gpus] = _Climb(space.climb(states, wish.gpus))
        last = self._climbs[wish.gpus].steps_to(needed) - len(self._leaving) - 1
        return ((order[last][0],),) if 0 <= last < len(order) else ()

    def _outlook_among(self, readings: Readings, wish: Wish, space: Space) -> Outlook:
        """`outlook` where more than memory may be in the way: siblings, groups, the limit, whoever wants it all."""
        in_way = [each.state for each in self._tenants if shared_groups(wish, each.state)]
        pool = self._pool(readings, wish, in_way)
        stuck = sum(state.id not in pool for state in in_way)
        if stuck:
            return Outlook(distance=(0, stuck, self.node.name))
        staying = [each.state for each in self._tenants if each.state.id not in pool]
        if self._surplus((state.model for state in staying), wish) > 0:
            # The limit takes young ones too: whether that helps, the trial says.
            may_go = any(state.id in self._young and state.model != wish.model for state in staying)
            return Outlook(()) if may_go else self._held(0, len(staying))
        if self._is_out_of_slots(wish, pool):
            return Outlook()
        if staying and (wish.per_gpu is None or any(state.exclusive for state in staying)):
            return self._held(0, len(staying))
        gone = (each.state for each in self._tenants if each.state.id in pool)
        fit, needed = space.copy().without(*gone).fit(wish.gpus), vram_needed(wish, self.node)
        if fit < needed:
            return self._held(needed - max(fit, 0), len(staying))
        return Outlook(self._at_least_among(readings, wish, pool, space))

    def _held(self, short: int, holders: int) -> Outlook:
        return Outlook(distance=(short, holders, self.node.name) if holders else None)

    def _pool(self, readings: Readings, wish: Wish, in_way: list[ReplicaState]) -> dict[ReplicaId, int]:
        """Who goes if all go that may, with their last use: 0 for those who leave anyway."""
        pool = {state.id: 0 for state in self._leaving}
        pool |= {replica: used for used, replica, state in self._order(readings) if state.model != wish.model}
        return pool | {state.id: used_ns(readings, state) for state in in_way if state.id in self._young}

    def _surplus(self, models: Iterable[ModelName], wish: Wish) -> int:
        """Of `models`, how many are more than the limit leaves for others beside the wish's own."""
        limit = max_loaded_models(self._fleet, self.node)
        return len({*models} - {wish.model}) - limit + 1 if limit else 0

    def _is_out_of_slots(self, wish: Wish, pool: Mapping[ReplicaId, int]) -> bool:
        taken = sum(replica not in pool for replica in self.node.slots.get(wish.model, {}).values())
        enough = wish.max_per_node is not None and taken >= wish.max_per_node
        return enough or taken >= self.node.max_replicas_per_model

    def _at_least_among(self, readings: Readings, wish: Wish, pool: Mapping[ReplicaId, int], space: Space) -> Cost:
        """The dearest of what memory, groups and the limit cost at least, each for itself."""
        in_way = [each.state for each in self._tenants if shared_groups(wish, each.state)]
        forced = [pool[state.id] for state in in_way if pool[state.id]]
        # Young ones of the group count for memory too, which `fits` doesn't know.
        memory = () if any(state.id in self._young for state in in_way) else self._at_least(readings, wish, space)
        if self._fleet.settings.eviction_order == "size":
            return max(memory, (len(forced),))
        surplus = self._surplus(self.models, wish)
        if surplus > 0:
            forced.append(self._latest_of_models(wish, pool)[surplus - 1])
        latest = max(forced, default=0)
        return max(memory, ((latest,),)) if latest else memory

    def _latest_of_models(self, wish: Wish, pool: Mapping[ReplicaId, int]) -> list[int]:
        """When each model was used last that may go as a whole, the earliest first."""
        latest: dict[ModelName, int] = {}
        for each in self._tenants:
            model, used = each.state.model, pool.get(each.state.id, EVER)
            if model != wish.model:
                latest[model] = max(latest.get(model, 0), used)
        return sorted(latest.values())


class _Climb:
    """What fits as one after another goes: never less. Found as far as it was asked for."""

    def __init__(self, climb: Iterator[int]) -> None:
        self._climb = climb
        self._fits = [next(climb)]

    def steps_to(self, needed: int) -> int:
        """How many have to go until `needed` fits; more than there are where it never does."""
        while self._fits[-1] < needed and (fit := next(self._climb, None)) is not None:
            self._fits.append(fit)
        return bisect_left(self._fits, needed)


class _Steps:
    """Where the largest go first: no plan takes fewer, frees less than as many of the smallest, or takes older ones."""

    def __init__(self, space: Space, going: list[Goer], gpus: int) -> None:
        gains = [space.gain(state) for _, _, state in going]
        self._gpus = gpus
        self._devices = [
            _climb(space.level(device), [gain.most_on(device) for gain in gains]) for device in space.devices
        ]
        self._whole = _climb(space.whole, [gain.total for gain in gains])
        self._least = [0, *accumulate(sorted(gain.total for gain in gains))]
        self._used = [used for used, _, _ in going]

    def at_least(self, needed: int) -> Cost:
        """What a plan costs at least that frees `needed` bytes on each device; nothing is there below zero too."""
        if needed <= 0:
            return (0,)
        by_device = sorted(bisect_left(climb, needed) for climb in self._devices)
        on_devices = by_device[self._gpus - 1] if by_device else 0
        steps = min(max(on_devices, bisect_left(self._whole, needed * self._gpus)), len(self._used))
        return steps, self._least[steps], tuple(reversed(self._used[:steps]))


def _climb(level: int, gains: list[int]) -> list[int]:
    """`level`, and what it rises to as the largest of `gains` come on top, one after another."""
    return list(accumulate(sorted(gains, reverse=True), initial=level))


def _tenant(fleet: Fleet, state: ReplicaState, spares: Spares, knows_routers: bool) -> Tenant:  # noqa: FBT001
    settled = settled_ns(state)
    return Tenant(state, _way(fleet, state, spares, knows_routers), settled, matures_ns(fleet, state))


def _way(fleet: Fleet, state: ReplicaState, spares: Spares, knows_routers: bool) -> Way:  # noqa: FBT001
    match state.phase:
        case Placed() | Loading():
            return "stays"
        case Draining(stopping=stopping, address=address):
            if stopping or address is None:
                return "leaves"
            return "drains" if knows_routers else "stays"
        case Ready():
            held = is_pinned(fleet, state) or fleet.settings.evictions_frozen or not knows_routers
            return "stays" if held or spare(fleet, state.model, spares) == 0 else "ready"
        case _:
            assert_never(state.phase)
