"""The search over all nodes: the best few, and the rest counted by the filter that rejected them (rules P1, P2, P5).

Invariant: every node is counted exactly once: rejected by its first filter, or a candidate.
"""

import heapq
from typing import Final, Literal

import msgspec

from modelyard_events.decision import EXAMPLES_MAX, RUNNERS_UP_MAX, FilterCount
from modelyard_events.ids import NodeName
from modelyard_projections.fleet import Fleet, NodeState
from modelyard_services.policy.filters import FILTERS, LOAD_FILTERS, Rejection, Scene, Wish, fits_when_empty, rejection
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.scores import Candidate, candidate

BEST_MAX: Final = 1 + RUNNERS_UP_MAX
"""The choice and its runners-up."""


class Survey(msgspec.Struct, frozen=True):
    """What a search found.

    `best` holds the choice first, then its runners-up; `freeable` whether some rejected node could hold the
    replica if nothing else were there; `nearest` the node of those that lacks the least memory, and how much.
    """

    considered: int
    candidates: int
    best: tuple[Candidate, ...]
    filters: tuple[FilterCount, ...]
    freeable: bool
    nearest: tuple[NodeName, int] | None = None

    @property
    def kind(self) -> Literal["unsatisfiable", "exhausted"]:
        """What a refusal would be (rule P5)."""
        return "exhausted" if self.freeable else "unsatisfiable"


def survey(fleet: Fleet, readings: Readings, wish: Wish) -> Survey:
    """Judge every node, one by one: the plain form, which says what any faster one must answer."""
    scene = Scene(fleet, readings, wish)
    nodes = considered(fleet, wish)
    tally = _Tally(scene)
    candidates: list[Candidate] = []
    for node in nodes:
        rejected = rejection(scene, node)
        if rejected is None:
            candidates.append(candidate(scene, node))
        else:
            tally.add(node, rejected)
    best = heapq.nsmallest(BEST_MAX, candidates, key=lambda each: each.rank(binpack=wish.binpack))
    return Survey(len(nodes), len(candidates), tuple(best), tally.counts(), tally.freeable, tally.nearest)


def considered(fleet: Fleet, wish: Wish) -> list[NodeState]:
    """The nodes a wish is about: all of them, or the one it names."""
    if wish.node is None:
        return list(fleet.nodes.values())
    return [fleet.nodes[wish.node]] if wish.node in fleet.nodes else []


class _Count:
    """Rejections by one filter."""

    def __init__(self, first: Rejection) -> None:
        self.nodes = 0
        self.unit = first.unit
        self.figures: list[int | float] = []
        self.examples: list[str] = []

    def add(self, node: NodeState, rejected: Rejection) -> None:
        self.nodes += 1
        if isinstance(rejected.figure, int | float):
            self.figures.append(rejected.figure)
        if len(self.examples) < EXAMPLES_MAX:
            self.examples.append(node.name)

    def total(self, name: str) -> FilterCount:
        low, high = min(self.figures, default=None), max(self.figures, default=None)
        return FilterCount(name, self.nodes, low, high, self.unit, tuple(self.examples))


class _Tally:
    """Rejections by filter, and whether emptying a node would help."""

    def __init__(self, scene: Scene) -> None:
        self.freeable = False
        self.nearest: tuple[NodeName, int] | None = None
        self._scene = scene
        self._counts: dict[str, _Count] = {}

    def add(self, node: NodeState, rejected: Rejection) -> None:
        self._counts.setdefault(rejected.filter, _Count(rejected)).add(node, rejected)
        if rejected.filter not in LOAD_FILTERS or not fits_when_empty(self._scene, node):
            return
        self.freeable = True
        if rejected.filter == "vram" and isinstance(rejected.figure, int):
            closer = self.nearest is None or rejected.figure < self.nearest[1]
            self.nearest = (node.name, rejected.figure) if closer else self.nearest

    def counts(self) -> tuple[FilterCount, ...]:
        return tuple(self._counts[name].total(name) for name in FILTERS if name in self._counts)
