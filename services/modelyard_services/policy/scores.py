"""Which of the nodes that can take a replica is best: compared score by score, ties by name (rule P2).

Invariant: the order is total, so the same fleet and readings give the same choice everywhere.
"""

import msgspec

from modelyard_events.decision import Figure
from modelyard_events.ids import NodeName
from modelyard_projections.fleet import Loading, NodeState, Placed
from modelyard_services.policy.filters import Scene
from modelyard_services.policy.memory import Room

Rank = tuple[int, int, int, int, str]


class Candidate(msgspec.Struct, frozen=True):
    """A node that passed every filter. A node that is loading isn't idle, so loads under way compare first."""

    node: NodeName
    loading: int
    replicas_of_model: int
    in_flight: int
    free: Room

    def rank(self, *, binpack: bool) -> Rank:
        """Lower is better."""
        free = self.free.total if binpack else -self.free.total
        return (self.loading, min(self.replicas_of_model, 1), self.in_flight, free, self.node)

    def scores(self) -> dict[str, Figure]:
        """The figures in the order they are compared."""
        return {
            "loading": self.loading,
            "replicas_of_model": self.replicas_of_model,
            "in_flight": self.in_flight,
            "vram_free": self.free.total,
        }


def candidate(scene: Scene, node: NodeState) -> Candidate:
    """`node` with its scores."""
    replicas = scene.fleet.replicas
    return Candidate(
        node=node.name,
        loading=sum(isinstance(replicas[replica].phase, Placed | Loading) for replica in node.replicas),
        replicas_of_model=len(node.slots.get(scene.wish.model, ())),
        in_flight=sum(scene.readings.in_flight.get(replica, 0) for replica in node.replicas),
        free=scene.room(node),
    )
