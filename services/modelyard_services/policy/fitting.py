"""How many more replicas of a model would fit, and where: its capacity as the fleet is now.

Invariant: `fit` says what placing one after another would come to, evicting nothing; nodes don't depend on each other.
What one more would come to, evictions and all, `one_more` says by the decision itself.
"""

import msgspec

from modelyard_events.ids import NodeName, ReplicaId
from modelyard_events.replica import ReplicaPlaced
from modelyard_projections.fleet import Fleet, NodeState
from modelyard_services.policy.desired import ceiling, floor, serving
from modelyard_services.policy.filters import (
    REPLICAS_PER_NODE_MAX,
    Rejection,
    Scene,
    Wish,
    rejection,
    vram_rejection,
)
from modelyard_services.policy.memory import Room, choose_devices
from modelyard_services.policy.placement import Request, place, wish_of
from modelyard_services.policy.readings import Readings
from modelyard_services.policy.searcher import Searcher


class NodeFit(msgspec.Struct, frozen=True):
    """How many more fit on one node; `rejected` says why not one."""

    node: NodeName
    replicas: int
    rejected: Rejection | None = None


class Fit(msgspec.Struct, frozen=True):
    """How many more fit on the fleet, beside how many there are and how many its schedule wants.

    `ceiling` is None where the schedule sets none.
    """

    replicas: int
    living: int
    floor: int
    ceiling: int | None
    nodes: tuple[NodeFit, ...]


class OneMore(msgspec.Struct, frozen=True):
    """What asking for one more now would come to: where it would go and who would end for it, or why it is refused."""

    outcome: str
    waits_for: tuple[ReplicaId, ...] = ()
    unblock: str | None = None


def one_more(fleet: Fleet, readings: Readings, request: Request, *, search: Searcher) -> OneMore:
    """The decision that `place` would make, made for nothing (rules P3-P5).

    Raises:
        ModelUnknownError: the model isn't defined.
    """
    outcome = place(fleet, readings, request, search=search)
    if outcome.refused is not None:
        return OneMore(outcome.refused.message, unblock=outcome.refused.unblock)
    placed = next(event for event in outcome.events if isinstance(event, ReplicaPlaced))
    return OneMore(placed.decision.outcome, placed.waits_for)


def fit(fleet: Fleet, readings: Readings, request: Request) -> Fit:
    """What would fit of the model that `request` names.

    Raises:
        ModelUnknownError: the model isn't defined.
    """
    scene = Scene(fleet, readings, wish_of(fleet, request))
    model = fleet.models[request.model]
    nodes = tuple(_on(scene, fleet.nodes[name]) for name in sorted(fleet.nodes))
    more = sum(each.replicas for each in nodes)
    return Fit(more, len(serving(fleet, model)), floor(model), ceiling(model), nodes)


def _on(scene: Scene, node: NodeState) -> NodeFit:
    rejected = rejection(scene, node)
    if rejected is not None:
        return NodeFit(node.name, 0, rejected)
    wish, places = scene.wish, _places(scene.wish, node)
    left, found = scene.room(node), 0
    while found < places and vram_rejection(wish, node, left.fit(wish.gpus)) is None:
        left = _without(left, choose_devices(left, gpus=wish.gpus, per_gpu=wish.per_gpu, binpack=wish.binpack))
        found += 1
    return NodeFit(node.name, found)


def _places(wish: Wish, node: NodeState) -> int:
    """Slots left, whatever their memory; a replica of unknown footprint wants its node for itself (R4)."""
    if wish.per_gpu is None:
        return 1
    slots = node.max_replicas_per_model
    allowed = slots if wish.max_per_node is None else min(slots, wish.max_per_node)
    return min(allowed - len(node.slots.get(wish.model, ())), REPLICAS_PER_NODE_MAX - len(node.replicas))


def _without(free: Room, held: dict[int, int]) -> Room:
    devices = {device: size - held.get(device, 0) for device, size in free.devices.items()}
    return Room(devices, free.total - sum(held.values()))
