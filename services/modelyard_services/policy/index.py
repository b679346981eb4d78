"""The search over all nodes without looking at each: the same answer as `survey`, from sets kept up to date.

Invariant: `PlacementIndex.survey(fleet, readings, wish) == survey(fleet, readings, wish)` for every fleet, readings
and wish (tests/property/test_placement_index.py). When in doubt it builds itself anew.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Final

from modelyard_events.decision import EXAMPLES_MAX, Figure, FilterCount
from modelyard_events.ids import NodeName, ReplicaId
from modelyard_projections.fleet import Fleet, NodeState, ReplicaState, Touched
from modelyard_services.policy.changes import changed
from modelyard_services.policy.clearances import Clearances
from modelyard_services.policy.eviction import Search
from modelyard_services.policy.filters import (
    REPLICAS_PER_NODE_MAX,
    Scene,
    Wish,
    backing_off,
    disk_needed,
)
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.rows import Row, Rows
from modelyard_services.policy.scores import Candidate
from modelyard_services.policy.searcher import PLAIN
from modelyard_services.policy.survey import BEST_MAX, Survey

SELECTORS_MAX: Final = 512
"""Selectors kept up to date; a fleet has a few, and one that names a new selector per request starts over."""


SIZES_MAX: Final = 1_024
"""Sizes for which it is kept who could hold them when empty: about one a model, and a set takes a bit a node."""


class PlacementIndex:
    """A fleet's nodes, ready to be searched. Tell it what changed by `note`; whatever it wasn't told, it notices."""

    def __init__(self) -> None:
        self._rows: Rows | None = None
        self._sequence = -1
        self._changed: set[NodeName] = set()
        self._clearances: Clearances | None = None

    def note(self, fleet: Fleet, touched: Iterable[Touched]) -> None:
        """`fleet` has folded on to its sequence, and `touched` is all that changed."""
        touched = list(touched)
        if self._clearances is not None:
            self._clearances.note(touched)
        for kind, key in touched:
            if kind == "node":
                self._changed.add(NodeName(key))
            elif kind == "replica" and (state := fleet.replicas.get(ReplicaId(key))) is not None:
                self._changed.add(state.node)
        self._sequence = fleet.sequence

    def survey(self, fleet: Fleet, readings: Readings, wish: Wish) -> Survey:
        """What `survey` answers, for a fleet that this index follows or for any other."""
        if wish.node is not None:
            return PLAIN.survey(fleet, readings, wish)
        rows = self._follow(fleet, readings)
        return _Search(rows, wish).survey()

    def make_room(self, fleet: Fleet, readings: Readings, wish: Wish) -> Search:
        """What `make_room` answers over all that the wish is about."""
        if wish.node is not None:
            return PLAIN.make_room(fleet, readings, wish)
        rows = self._follow(fleet, readings)
        if self._clearances is None or self._clearances.fleet is not rows.fleet:
            self._clearances = Clearances(rows.fleet)
        return self._clearances.make_room(readings, wish, _Search(rows, wish).could_help())

    def _follow(self, fleet: Fleet, readings: Readings) -> Rows:
        rows = self._rows
        known = rows is not None and rows.fleet is fleet and self._sequence == fleet.sequence
        if rows is None or not known or rows.selectors > SELECTORS_MAX or not self._refresh(rows, readings):
            rows, self._clearances = Rows(fleet, readings), None
            self._rows = rows
        self._sequence = fleet.sequence
        self._changed.clear()
        return rows

    def _refresh(self, rows: Rows, readings: Readings) -> bool:
        """Bring `rows` up to date; False where only building anew can (a node was removed, or came anew)."""
        if readings is not rows.readings:
            self._hear(rows, readings)
        changed = self._changed
        for name in changed:
            node, row = rows.fleet.nodes.get(name), rows.by_name.get(name)
            if node is None or (row is not None and row.node is not node):
                return False
        # New nodes come after the others, in the order in which they registered.
        for name in (*(name for name in changed if name in rows.by_name), *_new(rows)):
            rows.refresh(rows.fleet.nodes[NodeName(name)])
        return True

    def _hear(self, rows: Rows, readings: Readings) -> None:
        """Take note of what `readings` show otherwise than those before."""
        leased: Counter[NodeName] = Counter()
        turned: list[ReplicaState] = []
        was, now = rows.readings, readings
        for replica in changed(was.in_flight, now.in_flight):
            state = rows.fleet.replicas.get(replica)
            if state is not None and state.node in rows.by_name:
                before, after = was.in_flight.get(replica, 0), now.in_flight.get(replica, 0)
                leased[state.node] += after - before
                if bool(before) != bool(after):
                    turned.append(state)
        measured = [name for name in changed(was.nodes, now.nodes) if name in rows.by_name]
        rows.readings = now
        for name in measured:
            rows.measure(rows.by_name[name])
        for name, more in leased.items():
            rows.lease(rows.by_name[name], more)
        if self._clearances is not None:
            self._clearances.hear(measured, turned)


def _new(rows: Rows) -> list[NodeName]:
    known = len(rows.list)
    return list(islice(rows.fleet.nodes, known, None)) if known < len(rows.fleet.nodes) else []


class _Search:
    """One wish against all rows: each filter takes its nodes out of those that are left."""

    def __init__(self, rows: Rows, wish: Wish) -> None:
        self._rows = rows
        self._wish = wish
        self._left = rows.all
        self._counts: list[FilterCount] = []
        self._loaded = 0
        self._nearest: tuple[NodeName, int] | None = None

    def survey(self) -> Survey:
        self._judge_nodes()
        fits_empty = self._fits_empty() if self._left else 0
        self._judge_load(fits_empty)
        return Survey(
            considered=len(self._rows.list),
            candidates=self._left.bit_count(),
            best=tuple(islice(self._best(), BEST_MAX)),
            filters=tuple(self._counts),
            freeable=bool(self._loaded & fits_empty),
            nearest=self._nearest,
        )

    def could_help(self) -> Iterator[NodeState]:
        """The nodes that only their residents keep from taking the wish, or nothing at all."""
        self._judge_nodes()
        self._reject_disk()
        self._reject_full()
        self._reject_backing_off()
        self._left &= self._rows.having("node", "occupied") & (self._fits_empty() if self._left else 0)
        return (row.node for row in self._in(self._left))

    def _judge_nodes(self) -> None:
        """The filters that ask nothing of a node's load: most wishes share what they leave over."""
        judged = self._rows.settled.judged
        known = judged.get(self._wish.selector)
        if known is None:
            for name in ("type", "admitted", "alive", "schedulable"):
                self._reject(name, self._rows.having("fails", name))
            self._reject("selector", ~self._rows.matching(self._wish.selector))
            known = judged[self._wish.selector] = self._left, tuple(self._counts)
        self._left, self._counts = known[0], [*known[1]]

    def _judge_load(self, fits_empty: int) -> None:
        rows, wish, before = self._rows, self._wish, self._left
        self._reject("concurrency_group", self._strangers())
        self._reject_full_of_models()
        self._reject_disk()
        if wish.max_per_node is not None:
            taken = rows.sets.get(("count", wish.model), {})
            enough = _union(
                mask for count, mask in taken.items() if isinstance(count, int) and count >= wish.max_per_node
            )
            self._reject("max_per_node", enough, wish.max_per_node, wish.max_per_node)
        self._reject_slots()
        self._reject_full()
        self._reject("exclusive", rows.having("node", "occupied" if wish.per_gpu is None else "exclusive"))
        self._reject_vram(fits_empty)
        self._reject_backing_off()
        self._loaded = before & ~self._left

    def _reject(self, name: str, nodes: int, low: Figure = None, high: Figure = None, unit: str | None = None) -> None:
        rejected = nodes & self._left
        if rejected:
            examples = tuple(row.node.name for row in islice(self._in(rejected), EXAMPLES_MAX))
            self._counts.append(FilterCount(name, rejected.bit_count(), low, high, unit, examples))
            self._left &= ~rejected

    def _strangers(self) -> int:
        """Nodes where another model of one of the wish's groups lives."""
        return _union(
            mask
            for group in self._wish.groups
            for model, mask in self._rows.sets.get(("group", group), {}).items()
            if model != self._wish.model
        )

    def _reject_full_of_models(self) -> None:
        full = {limit: self._full_of_models(limit) & nodes for limit, nodes in self._limits().items() if limit}
        limits = [limit for limit, nodes in full.items() if nodes & self._left]
        if limits:
            self._reject("loaded_limit", _union(full.values()), min(limits), max(limits))

    def _limits(self) -> dict[int, int]:
        """The nodes that each limit of models holds for; a node's own goes before the fleet's (C8)."""
        limits: dict[int, int] = {}
        for own, nodes in self._rows.sets.get("own_limit", {}).items():
            limit = own if isinstance(own, int) else self._rows.fleet.settings.max_loaded_models
            limits[limit] = limits.get(limit, 0) | nodes
        return limits

    def _full_of_models(self, limit: int) -> int:
        """The nodes that hold as many other models already."""
        models = self._rows.sets.get("models", {})
        over = _union(mask for count, mask in models.items() if isinstance(count, int) and count > limit)
        present = _union(self._rows.sets.get(("count", self._wish.model), {}).values())
        return over | (models.get(limit, 0) & ~present)

    def _reject_disk(self) -> None:
        needed = self._disk_needed
        if needed is None:
            return
        ranked = self._rows.by("disk_free")
        short = ranked.at_least(1 - needed) & self._left
        least, most = next(ranked.first(short), None), ranked.last(short)
        if least is not None and most is not None:
            self._reject("disk", short, needed + least[0], needed + most[0], "bytes")

    def _reject_slots(self) -> None:
        taken = self._rows.having("no_slot", self._wish.model) & self._left
        if taken:
            caps = [cap for cap, mask in self._rows.sets["cap"].items() if isinstance(cap, int) and mask & taken]
            self._reject("slot", taken, min(caps), max(caps))

    def _reject_full(self) -> None:
        full = self._rows.having("node", "full")
        self._reject("replicas", full, REPLICAS_PER_NODE_MAX, REPLICAS_PER_NODE_MAX)

    def _reject_vram(self, fits_empty: int) -> None:
        needed = self._needed
        ranked = self._rows.by(("fit", self._wish.gpus))
        short = ranked.at_least(1 - needed) & self._left & self._may_lack
        least, most = next(ranked.first(short), None), ranked.last(short)
        if least is None or most is None:
            return
        closest = next(ranked.first(short & fits_empty), None)
        if closest is not None:
            self._nearest = (self._rows.list[closest[2]].node.name, needed - max(-closest[0], 0))
        self._reject("vram", short, needed - max(-least[0], 0), needed - max(-most[0], 0), "bytes")

    def _reject_backing_off(self) -> None:
        failed = self._rows.having("failed", self._wish.model) & self._left
        waiting = 0
        seconds: list[float] = []
        scene = Scene(self._rows.fleet, self._rows.readings, self._wish)
        for row in self._in(failed):
            rejected = backing_off(scene, row.node)
            if rejected is not None and isinstance(rejected.figure, float):
                waiting |= 1 << row.position
                seconds.append(rejected.figure)
        if seconds:
            self._reject("backoff", waiting, min(seconds), max(seconds), "seconds")

    @property
    def _disk_needed(self) -> int | None:
        """With the headroom, which operators may change."""
        payload = self._wish.disk
        return None if payload is None else disk_needed(self._rows.fleet.settings, payload)

    @property
    def _needed(self) -> int:
        return 1 if self._wish.per_gpu is None else self._wish.per_gpu

    @property
    def _may_lack(self) -> int:
        """An unknown footprint asks nothing of a node without devices, unless it asks for several."""
        anywhere = self._wish.per_gpu is not None or self._wish.gpus > 1
        return self._rows.all if anywhere else self._rows.having("node", "devices")

    def _fits_empty(self) -> int:
        """The nodes that could hold it with nothing else there."""
        wish, sizes = self._wish, self._rows.settled.empty
        asked = (wish.gpus, wish.per_gpu, self._disk_needed)
        known = sizes.get(asked)
        if known is None:
            if len(sizes) >= SIZES_MAX:
                sizes.clear()
            known = sizes[asked] = self._find_fits_empty()
        return known

    def _find_fits_empty(self) -> int:
        short = self._rows.by(("empty", self._wish.gpus)).at_least(1 - self._needed) & self._may_lack
        needed = self._disk_needed
        if needed is not None:
            short |= self._rows.by("disk_total").at_least(1 - needed)
        return self._rows.all & ~short

    def _best(self) -> Iterator[Candidate]:
        """The candidates in order: level by level of each score, then by free memory and name."""
        rows, wish = self._rows, self._wish
        counts = rows.sets.get(("count", wish.model), {})
        present = _union(counts.values())
        order = rows.by("pack" if wish.binpack else "spread")
        for loading in _ascending(rows.sets.get("loading", {}), self._left):
            for among in (loading & ~present, loading & present):
                for level in _ascending(rows.sets.get("in_flight", {}), among) if among else ():
                    for entry in order.first(level):
                        yield self._candidate(rows.list[entry[2]])

    def _candidate(self, row: Row) -> Candidate:
        return Candidate(
            node=row.node.name,
            loading=row.loading,
            replicas_of_model=len(row.node.slots.get(self._wish.model, ())),
            in_flight=row.in_flight,
            free=row.free,
        )

    def _in(self, nodes: int) -> Iterator[Row]:
        """The rows of a set, in order of position."""
        while nodes:
            lowest = nodes & -nodes
            yield self._rows.list[lowest.bit_length() - 1]
            nodes ^= lowest


def _union(masks: Iterable[int]) -> int:
    found = 0
    for mask in masks:
        found |= mask
    return found


def _ascending(levels: dict[object, int], among: int) -> Iterator[int]:
    """The part of `among` at each level, from the lowest level on."""
    for level in sorted(level for level in levels if isinstance(level, int)):
        part = levels[level] & among
        if part:
            yield part
