"""The fleet's nodes as sets of bits, one set for each thing that placement asks about a node.

A node has a position, the order in which it registered; a set of nodes is an integer with their bits. What is
asked of a node (`("count", "llama") = 2`, `"fails" = "alive"`) is a family and a value; `sets[family][value]` are
the nodes of which it holds.

Invariant: `refresh` leaves every set as if it had been built anew from the fleet and the readings.
"""

from collections.abc import Callable, Hashable, Iterable

from modelyard_events.decision import FilterCount
from modelyard_events.selectors import Selector, matches
from modelyard_events.sizes import SIZE_MAX
from modelyard_projections.fleet import Fleet, Loading, NodeState, Placed
from modelyard_services.policy.filters import FIXED_FILTERS, REPLICAS_PER_NODE_MAX, Scene, Wish
from modelyard_services.policy.memory import Room, empty_room, room
from modelyard_services.policy.ranked import Entry, Ranked
from modelyard_services.policy.readings import NodeReading, Readings

Family = Hashable
Fact = tuple[Family, Hashable]

Judged = tuple[int, tuple[FilterCount, ...]]
"""The nodes that the filters which ask nothing of a node's load leave over, and what those rejected."""

UNLIMITED = 4 * SIZE_MAX
"""Stands in for a figure that nobody knows and that therefore passes every bound."""


class Row:
    """One node's place in the sets, and the figures it was entered with."""

    __slots__ = (
        "entries",
        "free",
        "in_flight",
        "load",
        "loading",
        "node",
        "own",
        "own_sequence",
        "position",
        "reading",
    )

    def __init__(self, node: NodeState, position: int) -> None:
        self.node = node
        self.position = position
        self.reading = NodeReading()
        self.own: set[Fact] = set()
        """What only the node's own events change."""
        self.own_sequence = -1
        self.load: set[Fact] = set()
        """What comes and goes with its replicas."""
        self.entries: dict[Family, Entry] = {}
        self.loading = 0
        self.in_flight = 0
        self.free = Room({}, 0)


class Order:
    """All nodes in the order of a figure; by its `own` one where no replica and no heartbeat changes it."""

    __slots__ = ("entry", "own", "ranked")

    def __init__(self, entry: Callable[[Row], Entry], *, own: bool = False) -> None:
        self.entry = entry
        self.own = own
        self.ranked = Ranked()


class Settled:
    """What was found of all nodes by what only their own events change: judged anew after one of those."""

    __slots__ = ("empty", "judged")

    def __init__(self) -> None:
        self.judged: dict[Selector, Judged] = {}
        self.empty: dict[Hashable, int] = {}


class Rows:
    """All nodes of `fleet` as `readings` see them."""

    def __init__(self, fleet: Fleet, readings: Readings) -> None:
        self.fleet = fleet
        self.readings = readings
        self.sets: dict[Family, dict[Hashable, int]] = {}
        self._orders: dict[Family, Order] = {}
        self.list: list[Row] = []
        self.all = 0
        self.by_name: dict[str, Row] = {}
        self.settled = Settled()
        self._selectors: dict[Selector, None] = {}
        for node in fleet.nodes.values():
            self.refresh(node)

    def refresh(self, node: NodeState) -> None:
        """Enter `node` anew, or for the first time."""
        row = self.by_name.get(node.name)
        if row is None:
            row = self.by_name[node.name] = Row(node, len(self.list))
            self.list.append(row)
            self.all |= 1 << row.position
        if row.own_sequence != node.sequence:
            self._refresh_own(row)
        load = self._load(row)
        self._enter(row, row.load, load)
        row.load = load
        self.measure(row)

    def measure(self, row: Row) -> None:
        """Enter what the newest heartbeat says of a node that is otherwise as it was."""
        row.reading = self.readings.of(row.node.name)
        row.free = room(self.fleet, row.node, row.reading)
        for family, order in self._orders.items():
            if not order.own:
                self._rank(row, family, order)

    def lease(self, row: Row, more: int) -> None:
        """Enter that there are so many `more` requests on a node that is otherwise as it was, or fewer."""
        before, row.in_flight = row.in_flight, row.in_flight + more
        if before != row.in_flight:
            self._take("in_flight", before, 1 << row.position)
            self._put("in_flight", row.in_flight, 1 << row.position)
            row.load ^= {("in_flight", before), ("in_flight", row.in_flight)}

    def having(self, family: Family, value: Hashable) -> int:
        """The nodes of which `value` holds in `family`."""
        return self.sets.get(family, {}).get(value, 0)

    def matching(self, selector: Selector) -> int:
        """The nodes whose labels match; a selector asked for once is kept up to date from then on."""
        if not selector:
            return self.all
        if selector not in self._selectors:
            self._selectors[selector] = None
            found = 0
            for row in self.list:
                if matches(selector, row.node.labels):
                    row.own.add(("selector", selector))
                    found |= 1 << row.position
            self.sets.setdefault("selector", {})[selector] = found
        return self.having("selector", selector)

    def by(self, family: Family) -> Ranked:
        """The nodes in the order of a figure, `"spread"` or `("fit", gpus)` say; kept up to date from then on."""
        order = self._orders.get(family)
        if order is None:
            order = self._orders[family] = _order(family)
            for row in self.list:
                self._rank(row, family, order)
        return order.ranked

    @property
    def selectors(self) -> int:
        """How many selectors are kept up to date."""
        return len(self._selectors)

    def _in_flight(self, node: NodeState) -> int:
        leases = self.readings.in_flight
        return sum(leases.get(replica, 0) for replica in node.replicas)

    def _refresh_own(self, row: Row) -> None:
        own = self._own(row.node)
        self._enter(row, row.own, own)
        row.own, row.own_sequence = own, row.node.sequence
        for family, order in self._orders.items():
            if order.own:
                self._rank(row, family, order)
        self.settled = Settled()

    def _enter(self, row: Row, before: set[Fact], now: set[Fact]) -> None:
        """Bring the sets from what held of a node `before` to what holds `now`."""
        bit = 1 << row.position
        for family, value in before - now:
            self._take(family, value, bit)
        for family, value in now - before:
            self._put(family, value, bit)

    def _put(self, family: Family, value: Hashable, bit: int) -> None:
        values = self.sets.setdefault(family, {})
        values[value] = values.get(value, 0) | bit

    def _take(self, family: Family, value: Hashable, bit: int) -> None:
        values = self.sets[family]
        values[value] ^= bit
        if not values[value]:
            del values[value]
            if not values:
                del self.sets[family]

    def _rank(self, row: Row, family: Family, order: Order) -> None:
        entry = order.entry(row)
        before = row.entries.get(family)
        if entry != before:
            if before is not None:
                order.ranked.remove(before)
            order.ranked.add(entry)
            row.entries[family] = entry

    def _load(self, row: Row) -> set[Fact]:
        node = row.node
        replicas = [self.fleet.replicas[replica] for replica in node.replicas]
        row.loading = sum(isinstance(state.phase, Placed | Loading) for state in replicas)
        row.in_flight = self._in_flight(node)
        facts: set[Fact] = {("loading", row.loading), ("in_flight", row.in_flight), ("models", len(node.slots))}
        facts.update(self._slots(node))
        for state in replicas:
            for group in state.groups:
                facts.add((("group", group), state.model))
            if state.exclusive:
                facts.add(("node", "exclusive"))
        for model in node.load_failures:
            facts.add(("failed", model))
        if replicas:
            facts.add(("node", "occupied"))
        if len(replicas) >= REPLICAS_PER_NODE_MAX:
            facts.add(("node", "full"))
        return facts

    def _own(self, node: NodeState) -> set[Fact]:
        facts: set[Fact] = {
            ("cap", node.max_replicas_per_model),
            ("own_limit", node.watchdog.max_loaded_models),
            *self._fixed(node),
            *(("selector", selector) for selector in self._selectors if matches(selector, node.labels)),
        }
        if node.devices:
            facts.add(("node", "devices"))
        return facts

    def _slots(self, node: NodeState) -> Iterable[Fact]:
        cap = node.max_replicas_per_model
        for model, taken in node.slots.items():
            yield ("count", model), len(taken)
            if len(taken) >= cap:
                yield "no_slot", model

    def _fixed(self, node: NodeState) -> Iterable[Fact]:
        """The node's own filters, which ask nothing of the wish; the selector is judged apart."""
        for name, judge in FIXED_FILTERS.items():
            if name != "selector" and judge(_ANY, node) is not None:
                yield "fails", name


def _order(family: Family) -> Order:
    match family:
        case "spread":
            return Order(lambda row: (-row.free.total, row.node.name, row.position))
        case "pack":
            return Order(lambda row: (row.free.total, row.node.name, row.position))
        case "disk_free":
            return Order(lambda row: (-_known(row.reading.disk_free), "", row.position))
        case "disk_total":
            return Order(lambda row: (-_known(row.node.facts.disk_total), "", row.position), own=True)
        case ("fit", int() as gpus):
            return Order(lambda row: (-row.free.fit(gpus), "", row.position))
        case ("empty", int() as gpus):
            return Order(lambda row: (-empty_room(row.node).fit(gpus), "", row.position), own=True)
        case _:
            raise ValueError(f"no figure is named {family!r}")


def _known(size: int | None) -> int:
    return UNLIMITED if size is None else size


_ANY = Scene(Fleet(), Readings(), Wish(model="", now_ns=0))  # type: ignore[arg-type]  # no model's wish
