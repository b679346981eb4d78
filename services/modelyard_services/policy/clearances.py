"""Room made without a trial on each node: what every node could be cleared to is known, and the best are tried (P3-P5).

```
nodes it could help on ──▶ the outlook of each ──▶ a plan, at least so dear: tried cheapest first until none can win,
                                              │    and looked at closer before that
                                              └──▶ none: the closest are tried, to say who is in the way
```

Invariant: it answers what `eviction.make_room` answers for the same nodes (tests/property/test_clearances.py); what
it keeps of a node is what a look at the fleet and the readings of that moment would find.
"""

import heapq
from collections.abc import Iterable, Iterator

from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_projections.fleet import Fleet, NodeState, ReplicaState, Touched
from modelyard_services.policy.changes import changed
from modelyard_services.policy.clearance import Clearance
from modelyard_services.policy.eviction import (
    LOOKED_INTO_MAX,
    Cost,
    Distance,
    Held,
    Search,
    Trial,
    first_cheapest,
    nearest,
)
from modelyard_services.policy.filters import Scene, Wish
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.victims import Spares, residents, spare


class Clearances:
    """What each node of one fleet could be cleared to; tell it what changed by `note`."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._readings = Readings()
        self._known: dict[NodeName, Clearance] = {}
        self._spares: Spares = {}
        self._pins: dict[ModelName, bool | None] = {}
        self._changed_nodes: set[NodeName] = set()
        self._changed_models: set[ModelName] = set()

    def note(self, touched: Iterable[Touched]) -> None:
        """All that changed in the fleet since the last call."""
        for kind, key in touched:
            match kind:
                case "node":
                    self._changed_nodes.add(NodeName(key))
                case "replica":
                    if (state := self.fleet.replicas.get(ReplicaId(key))) is not None:
                        self._changed_nodes.add(state.node)
                case "model":
                    self._changed_models.add(ModelName(key))
                case "settings":
                    self._known.clear()
                case _:
                    pass  # neither reservations alone nor tokens move a replica

    def hear(self, measured: Iterable[NodeName], turned: Iterable[ReplicaState]) -> None:
        """New heartbeats of some nodes; and the replicas that became busy or idle."""
        for name in measured:
            if name in self._known:
                self._known[name].measure()
        for state in turned:
            if state.node in self._known:
                self._known[state.node].turn(state.id)

    def make_room(self, readings: Readings, wish: Wish, nodes: Iterable[NodeState]) -> Search:
        """The cheapest plan over `nodes`, which residents alone keep from taking the wish."""
        self._follow()
        self._listen(readings)
        scene = Scene(self.fleet, readings, wish)
        trials: list[tuple[Cost, NodeName]] = []
        held: list[Distance] = []
        for node in nodes:
            outlook = (self._known.get(node.name) or self._look_at(node)).outlook(readings, wish)
            if outlook.at_least is not None:
                trials.append((outlook.at_least, node.name))
            elif outlook.distance is not None:
                held.append(outlook.distance)
        plan, blocked = first_cheapest(self._cheapest_first(scene, trials))
        if plan is not None:
            return Search(plan)
        closest = heapq.nsmallest(LOOKED_INTO_MAX, held)
        return Search(blocked=nearest([*blocked, *self._blocked(scene, closest)]))

    def _cheapest_first(self, scene: Scene, trials: list[tuple[Cost, NodeName]]) -> Iterator[tuple[Cost, Trial]]:
        """The trials by what a plan costs at least; what was known only roughly is found when its turn comes."""
        heapq.heapify(trials)
        while trials:
            roughly, name = heapq.heappop(trials)
            at_least = self._known[name].at_least(scene.readings, scene.wish, roughly)
            if roughly < at_least:
                heapq.heappush(trials, (at_least, name))
            else:
                yield at_least, self._trial(scene, name)

    def _look_at(self, node: NodeState) -> Clearance:
        found = Clearance(self.fleet, node, self._spares, knows_routers=self._readings.knows_routers)
        self._known[node.name] = found
        for model in found.models - self._pins.keys():
            self._pins[model] = _pin(self.fleet, model)
        return found

    def _trial(self, scene: Scene, name: NodeName) -> Trial:
        members = residents(scene, self.fleet.replicas_on(name), self._spares)
        return Trial(scene, self.fleet.nodes[name], members)

    def _blocked(self, scene: Scene, closest: Iterable[Distance]) -> list[Held]:
        _, held = first_cheapest(((), self._trial(scene, NodeName(name))) for _, _, name in closest)
        return held

    def _follow(self) -> None:
        """Forget what is known of nodes that changed, and of those where a model stands otherwise than before."""
        models = self._changed_models
        for name in self._changed_nodes:
            known = self._known.pop(name, None)
            models |= known.models if known is not None else set()
            models |= {self.fleet.replicas[replica].model for replica in self.fleet.nodes[name].replicas}
        for model in models:
            if self._stands_otherwise(model):
                for state in self.fleet.replicas_of(model):
                    self._known.pop(state.node, None)
        self._changed_nodes, self._changed_models = set(), set()

    def _stands_otherwise(self, model: ModelName) -> bool:
        """Whether another number of the model's replicas may go now, or it was pinned or unpinned."""
        pin, had_pin = _pin(self.fleet, model), self._pins.pop(model, None)
        if model not in self._spares:
            return pin != had_pin
        had = self._spares.pop(model)
        return pin != had_pin or (model in self.fleet.models and spare(self.fleet, model, self._spares) != had)

    def _listen(self, readings: Readings) -> None:
        """Take note of uses, and of whether all routers are known; the rest was told by `hear`."""
        before, self._readings = self._readings, readings
        if before is readings:
            return
        if before.knows_routers != readings.knows_routers:
            self._known.clear()
        was, now = before.last_used_ns, readings.last_used_ns
        for replica in changed(was, now):
            state = self.fleet.replicas.get(replica)
            if state is not None and state.node in self._known and not readings.in_flight.get(replica):
                self._known[state.node].use(later=was.get(replica, 0) <= now.get(replica, 0))


def _pin(fleet: Fleet, model: ModelName) -> bool | None:
    """Whether the model's definition pins its replicas; None where it has none, and each is as it was placed."""
    known = fleet.models.get(model)
    return None if known is None or known.spec is None else known.spec.pinned
