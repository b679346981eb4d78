"""Who on a node may be asked to make room, and what stands against the others (rules P3, P4, I5).

Invariant: a replica is free to go only if it is known to be idle, isn't pinned, and leaves its model's floor standing
in ready replicas; what is unknown stands against it (N9).
"""

from collections.abc import Iterable
from typing import Final, Literal, assert_never

import msgspec

from modelyard_events.ids import ModelName
from modelyard_events.spec import SpreadAll
from modelyard_projections.fleet import Draining, Fleet, Loading, ModelState, Placed, Ready, ReplicaState
from modelyard_services.policy.desired import counted, floor, is_ready
from modelyard_services.policy.filters import Scene
from modelyard_services.policy.readings import Readings

Obstacle = Literal["sibling", "loading", "draining", "unknown", "frozen", "pinned", "busy", "at_min", "young"]
"""What keeps a replica where it is."""

OBSTACLES: Final[dict[Obstacle, str]] = {
    "sibling": "is a replica of the same model",
    "loading": "is loading",
    "draining": "still serves requests while it drains",
    "unknown": "may be busy: not every router was heard yet",
    "frozen": "stays while evictions are frozen",
    "pinned": "is pinned",
    "busy": "is serving requests",
    "at_min": "is needed for its model's min_replicas",
    "young": "was loaded too recently",
}
"""The same, as people read it."""


PASSING: Final[frozenset[Obstacle | None]] = frozenset({"young", "unknown"})
"""Obstacles that time alone takes away, in a minute at most."""


class Resident(msgspec.Struct, frozen=True):
    """A replica as eviction sees it: when it was last of use, and what stands against its going.

    `leaving` when it drains already and nothing is on it: it costs nothing to wait for it. A `young` one is protected
    from demands for memory only.
    """

    state: ReplicaState
    used_ns: int
    obstacle: Obstacle | None = None
    leaving: bool = False

    @property
    def goes(self) -> bool:
        return self.obstacle is None

    @property
    def name(self) -> str:
        return f"{self.state.model}#{self.state.replica_index}"


Spares = dict[ModelName, int | None]
"""What `spare` found, by model: kept over the nodes of one search."""


def residents(scene: Scene, replicas: Iterable[ReplicaState], spares: Spares | None = None) -> list[Resident]:
    """`replicas` of one node, those first that are least recently used."""
    found = [_resident(scene, state) for state in replicas]
    found.sort(key=lambda each: (each.used_ns, each.state.id))
    return _above_floors(scene.fleet, found, {} if spares is None else spares)


def is_pinned(fleet: Fleet, state: ReplicaState) -> bool:
    """As its model says now: a redefinition pins and unpins what runs at once; else as it was placed (X23)."""
    model = fleet.models.get(state.model)
    return state.pinned if model is None or model.spec is None else model.spec.pinned


def used_ns(readings: Readings, state: ReplicaState) -> int:
    """Its last use; its load where no use is known."""
    return max(readings.last_used_ns.get(state.id, 0), settled_ns(state))


def settled_ns(state: ReplicaState) -> int:
    """When it was loaded, or else came to where it is."""
    return state.loaded_ns or state.since_ns


def matures_ns(fleet: Fleet, state: ReplicaState) -> int:
    """When it stops being young."""
    return settled_ns(state) + round(fleet.settings.min_residency_seconds * 1e9)


def spare(fleet: Fleet, model: ModelName, found: Spares) -> int | None:
    """How many ready replicas of `model` may go without breaking its floor, None for all of them; kept in `found`."""
    if model not in found:
        found[model] = _spare(fleet, fleet.models[model])
    return found[model]


def _spare(fleet: Fleet, model: ModelState) -> int | None:
    if isinstance(model.options.mode, SpreadAll) and model.spec is not None:
        return 0
    least = floor(model) if model.spec is not None else 0
    if not least:
        return None
    return max(0, sum(is_ready(each) for each in counted(fleet, model)) - least)


def _resident(scene: Scene, state: ReplicaState) -> Resident:
    used = used_ns(scene.readings, state)
    match state.phase:
        case Placed() | Loading():
            return Resident(state, used, "loading")
        case Draining(stopping=stopping, address=address):
            empty = stopping or address is None or _is_idle(scene, state)
            return Resident(state, used, None if empty else "draining", leaving=empty)
        case Ready():
            return Resident(state, used, _against(scene, state))
        case _:
            assert_never(state.phase)


def _against(scene: Scene, state: ReplicaState) -> Obstacle | None:
    settings = scene.fleet.settings
    if state.model == scene.wish.model:
        return "sibling"
    if is_pinned(scene.fleet, state):
        return "pinned"
    if scene.readings.in_flight.get(state.id, 0):
        return "busy"
    if not scene.readings.knows_leases_of(state.id):
        return "unknown"
    if settings.evictions_frozen:
        return "frozen"
    return "young" if scene.wish.now_ns < matures_ns(scene.fleet, state) else None


def _is_idle(scene: Scene, state: ReplicaState) -> bool:
    return scene.readings.knows_leases_of(state.id) and not scene.readings.in_flight.get(state.id, 0)


def _above_floors(fleet: Fleet, found: list[Resident], spares: Spares) -> list[Resident]:
    """Of a model that can lose only some, those go that aren't young, and then the least recently used."""
    left: dict[str, int | None] = {}
    needed: set[str] = set()
    for each in sorted(found, key=lambda each: each.obstacle == "young"):
        if each.leaving or each.obstacle not in {None, "young"}:
            continue
        may_go = left.setdefault(each.state.model, spare(fleet, each.state.model, spares))
        if may_go is not None:
            left[each.state.model] = may_go - 1
            if may_go <= 0:
                needed.add(each.state.id)
    return [msgspec.structs.replace(each, obstacle="at_min") if each.state.id in needed else each for each in found]
