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

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final, Literal, assert_never

import msgspec

from modelyard_events.ids import ModelName, ReplicaId
from modelyard_projections.fleet import Draining, Fleet, Loading, NodeState, Placed, Ready, ReplicaState
from modelyard_services.policy.climbs import Climb, Goer, Steps
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


class Outlook(msgspec.Struct, frozen=True):
    """What a trial would find: a plan that costs at least so much, or none at a distance; else nobody in the way."""

    at_least: Cost | None = None
    distance: Distance | None = None


Size = tuple[int, int | None]
"""How many devices, and the bytes on each."""


class Clearance:
    """One node, judged for nobody in particular."""

    def __init__(self, fleet: Fleet, node: NodeState, spares: Spares, *, knows_routers: bool) -> None:
        self.node = node
        self._fleet = fleet
        self._spares = spares
        self._tenants = [_tenant(fleet, state, spares, knows_routers) for state in fleet.replicas_on(node.name)]
        self._by_id = {each.state.id: each for each in self._tenants}
        self.models = frozenset(each.state.model for each in self._tenants)
        self._groups = frozenset(group for each in self._tenants for group in each.state.groups)
        exclusive = any(each.state.exclusive for each in self._tenants)
        self._bounds_more_than_memory = exclusive or max_loaded_models(fleet, node) > 0
        ready = Counter(each.state.model for each in self._tenants if each.way == "ready")
        self._limited = any(count > (spares[model] or count) for model, count in ready.items())
        self._space: Space | None = None
        self._emptied: Space | None = None
        self._climbs: dict[int, Climb] = {}
        self._outlooks: dict[Size, Outlook] = {}
        self._floors: dict[Size, Cost] = {}
        self._exact: set[Size] = set()
        self._steps: dict[int, Steps] = {}
        self._leaving: list[ReplicaState] = []
        self._going: dict[ReplicaId, Tenant] = {}
        self._turned: set[ReplicaId] = set()
        self._by_use: list[Goer] | None = None
        self._young: set[ReplicaId] = set()
        self._since_ns = self._until_ns = EVER

    def measure(self) -> None:
        """Note that the node's heartbeat changed."""
        self._space = None
        self._forget()

    def turn(self, replica: ReplicaId) -> None:
        """Note that a replica became busy or idle."""
        way = self._by_id[replica].way if replica in self._by_id else "stays"
        if way == "drains" or (way == "ready" and self._limited):
            self._since_ns = EVER
        elif way == "ready":
            self._turned.add(replica)

    def use(self, *, later: bool) -> None:
        """Note that an idle replica was used in between: who may go stays, but in another order.

        Where it was used `later` than was known, a plan costs no less than before.
        """
        if self._limited:
            self._since_ns = EVER
        if self._by_use is not None:
            self._forget_order()
        if not later:
            self._forget_costs()

    def outlook(self, readings: Readings, wish: Wish) -> Outlook:
        """What a trial of `wish` would find; of a plan what it costs at least, and `at_least` may know of more."""
        if self._turned or not self._since_ns <= wish.now_ns < self._until_ns:
            self._judge(readings, wish.now_ns)
        if self._asks_more_than_memory(wish):
            return self._outlook_among(readings, wish, self._space_by(readings))
        asked = (wish.gpus, wish.per_gpu)
        known = self._outlooks.get(asked)
        if known is None:
            if len(self._floors) >= OUTLOOKS_MAX or len(self._outlooks) >= OUTLOOKS_MAX:
                self._forget_costs()
            known = self._outlooks[asked] = self._outlook_alone(readings, wish)
        return known

    def at_least(self, readings: Readings, wish: Wish, roughly: Cost) -> Cost:
        """What a plan costs at least, by a closer look than that of `outlook`, which said `roughly` so much."""
        if self._asks_more_than_memory(wish):
            return roughly
        asked = (wish.gpus, wish.per_gpu)
        if asked not in self._exact:
            found = self._find_at_least(readings, wish)
            self._outlooks[asked] = Outlook(found)
        return self._floors[asked]

    def _asks_more_than_memory(self, wish: Wish) -> bool:
        """Whether more than memory may be in the way: siblings, groups, the limit, whoever wants it all."""
        touches = wish.model in self.models or not self._groups.isdisjoint(wish.groups)
        return touches or self._bounds_more_than_memory or wish.per_gpu is None

    def _judge(self, readings: Readings, now_ns: int) -> None:
        """Find who may go now."""
        if self._since_ns <= now_ns < self._until_ns:
            self._sort_turned(readings, now_ns)
            return
        self._sort(readings, now_ns)
        if self._limited:
            self._keep_floors(readings, now_ns)
        self._forget()

    def _space_by(self, readings: Readings) -> Space:
        if self._space is None:
            self._space = Space(self._fleet, self.node, readings.of(self.node.name))
        return self._space

    def _outlook_alone(self, readings: Readings, wish: Wish) -> Outlook:
        """`outlook` where memory alone is in the way."""
        needed, cleared = vram_needed(wish, self.node), self._cleared_for(wish.gpus, readings)
        if cleared < needed:
            return self._held(needed - max(cleared, 0), len(self._tenants) - len(self._leaving) - len(self._going))
        floor = self._floors.get((wish.gpus, wish.per_gpu))
        return Outlook(self._find_at_least(readings, wish) if floor is None else floor)

    def _find_at_least(self, readings: Readings, wish: Wish) -> Cost:
        asked = (wish.gpus, wish.per_gpu)
        found = self._floors[asked] = self._at_least(readings, wish, self._space_by(readings))
        self._exact.add(asked)
        return found

    def _sort(self, readings: Readings, now_ns: int) -> None:
        busy = readings.in_flight
        self._leaving, self._going, self._young = [], {}, set()
        self._since_ns, self._until_ns = 0, EVER
        self._turned.clear()
        for each in self._tenants:
            state = each.state
            if each.way == "stays" or (each.way != "leaves" and busy.get(state.id)):
                continue
            if each.way == "ready":
                self._let_go(each, now_ns)
            else:
                self._leaving.append(state)

    def _let_go(self, each: Tenant, now_ns: int) -> None:
        """Enter a replica that is ready and idle."""
        if now_ns < each.matures_ns:
            self._young.add(each.state.id)
            self._until_ns = min(self._until_ns, each.matures_ns)
        else:
            self._going[each.state.id] = each
            self._since_ns = max(self._since_ns, each.matures_ns)

    def _sort_turned(self, readings: Readings, now_ns: int) -> None:
        """`_sort` of those alone that became busy or idle; what a plan costs at least is kept below what it costs.

        With one fewer to go no plan gets cheaper. With one more, a plan takes that one or costs what it did.
        """
        self._forget_order()
        self._outlooks.clear()
        emptied = self._emptied_by(readings)
        for replica in self._turned:
            each = self._by_id[replica]
            if self._going.pop(replica, None) is not None:
                emptied.put_back(each.state)
            self._young.discard(replica)
            if not readings.in_flight.get(replica):
                self._let_go(each, now_ns)
            if replica in self._going:
                emptied.without(each.state)
                used: Cost = ((used_ns(readings, each.state),),)
                self._floors = {asked: min(floor, used) for asked, floor in self._floors.items()}
        self._turned.clear()

    def _keep_floors(self, readings: Readings, now_ns: int) -> None:
        """Of a model with more replicas here than may go, only some do; who they are, `residents` alone says."""
        scene = Scene(self._fleet, readings, msgspec.structs.replace(NOBODY, now_ns=now_ns))
        judged = residents(scene, (each.state for each in self._tenants), self._spares)
        held_back = {each.state.id for each in judged if each.obstacle == "at_min"}
        self._going = {replica: each for replica, each in self._going.items() if replica not in held_back}
        self._young -= held_back

    def _forget(self) -> None:
        self._emptied = None
        self._forget_costs()
        self._forget_order()

    def _forget_costs(self) -> None:
        self._floors.clear()
        self._exact.clear()
        self._outlooks.clear()

    def _forget_order(self) -> None:
        if self._fleet.settings.eviction_order == "size":
            # Who goes with how many others changes with each that goes or doesn't.
            self._forget_costs()
        self._by_use = None
        self._exact.clear()
        self._climbs.clear()
        self._steps.clear()

    def _order(self, readings: Readings) -> list[Goer]:
        """Those who may go, least recently used first."""
        if self._by_use is None:
            used = readings.last_used_ns
            self._by_use = sorted(
                (max(used.get(each.state.id, 0), each.settled_ns), each.state.id, each.state)
                for each in self._going.values()
            )
        return self._by_use

    def _cleared_for(self, gpus: int, readings: Readings) -> int:
        """What fits once all have gone that may."""
        return self._emptied_by(readings).fit(gpus)

    def _emptied_by(self, readings: Readings) -> Space:
        if self._emptied is None:
            going = (each.state for each in self._going.values())
            self._emptied = self._space_by(readings).copy().without(*self._leaving, *going)
        return self._emptied

    def _at_least(self, readings: Readings, wish: Wish, space: Space) -> Cost:
        """What freeing the memory costs at least."""
        needed, order = vram_needed(wish, self.node), self._order(readings)
        if self._fleet.settings.eviction_order == "size":
            if wish.gpus not in self._steps:
                self._steps[wish.gpus] = Steps(space.copy().without(*self._leaving), order, wish.gpus)
            return self._steps[wish.gpus].at_least(needed)
        if wish.gpus not in self._climbs:
            states = [*self._leaving, *(state for _, _, state in order)]
            self._climbs[wish.gpus] = Climb(space.climb(states, wish.gpus))
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
