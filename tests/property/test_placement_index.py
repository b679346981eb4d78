"""The index answers what the plain search answers, whatever happens to a fleet and in whatever order it is told.

So a trap that the plain search is tested for (X6, X8, X18, X20) isn't in the index either.
"""

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from modelyard_events.ids import CommandId, ModelName, NodeName
from modelyard_events.node import NodeCapacityChanged, NodeRemoved
from modelyard_services.policy.ending import end
from modelyard_services.policy.filters import Wish
from modelyard_services.policy.index import PlacementIndex
from modelyard_services.policy.placement import Request, wish_of
from modelyard_services.policy.ranked import Ranked
from modelyard_services.policy.readings import NodeReading, Readings
from modelyard_services.policy.searcher import PLAIN
from modelyard_services.policy.survey import survey
from tests.property.test_placement_invariants import MODELS, NODES, AnyFleet, some_gib
from tests.support.given import GIB, SECOND_NS, START_NS, some_facts

node_readings = st.builds(
    NodeReading,
    vram_free=st.dictionaries(st.integers(-1, 2), some_gib, max_size=3),
    disk_free=st.one_of(st.none(), some_gib),
)
shown = st.one_of(st.none(), st.dictionaries(st.integers(-1, 2), some_gib, max_size=2))
uses = st.integers(-10, 2_000).map(lambda seconds: START_NS + seconds * SECOND_NS)


class IndexedFleet(AnyFleet):
    """Anything may happen, and after each step both searches are asked the same."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PlacementIndex()

    @rule(nodes=st.dictionaries(st.sampled_from(NODES), node_readings), data=st.data())
    def measure(self, nodes: dict[str, NodeReading], data: st.DataObject) -> None:
        replicas = sorted(self.world.fleet.replicas)
        busy = data.draw(st.dictionaries(st.sampled_from(replicas), st.integers(0, 3))) if replicas else {}
        used = data.draw(st.dictionaries(st.sampled_from(replicas), uses)) if replicas else {}
        visible = data.draw(st.dictionaries(st.sampled_from(replicas), shown)) if replicas else {}
        known = {"visible": visible, "folded": data.draw(st.sampled_from([0, self.world.fleet.sequence]))}
        self.readings = Readings(
            {NodeName(name): msgspec.structs.replace(reading, **known) for name, reading in nodes.items()},
            busy,
            used,
            knows_routers=data.draw(st.sampled_from([True, True, True, False])),
        )

    @rule(node=st.sampled_from(NODES), gpus=st.integers(0, 2), vram=some_gib, disk=st.one_of(st.none(), some_gib))
    def rebuild(self, node: str, gpus: int, vram: int, disk: int | None) -> None:
        """Another capacity, told by the worker that runs there."""
        state = self.world.fleet.nodes.get(NodeName(node))
        if state is not None:
            facts = some_facts(gpus=gpus, vram=vram)
            changed = NodeCapacityChanged(
                node=node, incarnation=state.incarnation, gpus=facts.gpus, vram_total=facts.vram_total, disk_total=disk
            )
            self._append([changed])

    @rule(node=st.sampled_from(NODES))
    def remove_node(self, node: str) -> None:
        state = self.world.fleet.nodes.get(NodeName(node))
        if state is not None and not (set(state.reservations) - {self._reservation(each) for each in state.replicas}):
            self._append([*end(self.world.fleet, state.replicas, reason="node_removed"), NodeRemoved(node=node)])

    def _reservation(self, replica: str) -> str:
        return next(each.reservation for each in self.world.fleet.replicas.values() if each.id == replica)

    @invariant()
    def both_answer_the_same(self) -> None:
        fleet = self.world.fleet
        self.index.note(fleet, fleet.take_touched())
        for model in MODELS:
            state = fleet.models.get(ModelName(model))
            if state is None or state.spec is None:
                continue
            wish = wish_of(fleet, Request(model=ModelName(model), command=CommandId("c"), now_ns=self.world.now_ns))
            for variant in _variants(wish):
                assert self.index.survey(fleet, self.readings, variant) == survey(fleet, self.readings, variant)
                room = PLAIN.make_room(fleet, self.readings, variant)
                assert self.index.make_room(fleet, self.readings, variant) == room


def _variants(wish: Wish) -> list[Wish]:
    replace = msgspec.structs.replace
    return [
        wish,
        replace(wish, disk=10 * GIB),
        replace(wish, per_gpu=None),
        replace(wish, binpack=not wish.binpack),
        replace(wish, per_gpu=30 * GIB, groups=("h",)),
        replace(wish, model=ModelName("unknown"), per_gpu=8 * GIB, gpus=2, now_ns=wish.now_ns + 100 * SECOND_NS),
    ]


IndexedFleet.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestIndexedFleet = IndexedFleet.TestCase

entries = st.lists(st.integers(-5, 5), max_size=600)


@given(figures=entries, removed=st.sets(st.integers(0, 599)), bound=st.integers(-6, 6), among=st.integers(0, 2**600))
def test_a_ranked_list_answers_as_a_sorted_one(figures: list[int], removed: set[int], bound: int, among: int) -> None:
    """Blocks split and vanish; what they answer stays that of a plain sorted list."""
    ranked = Ranked()
    every = [(figure, str(position % 7), position) for position, figure in enumerate(figures)]
    for entry in every:
        ranked.add(entry)
    for entry in every:
        if entry[2] in removed:
            ranked.remove(entry)
    left = sorted(entry for entry in every if entry[2] not in removed)
    assert ranked.at_least(bound) == sum(1 << entry[2] for entry in left if entry[0] >= bound)
    hits = [entry for entry in left if among >> entry[2] & 1]
    assert list(ranked.first(among)) == hits
    assert ranked.last(among) == (hits[-1] if hits else None)
