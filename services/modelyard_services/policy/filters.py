"""Which nodes can take a replica: ordered, named filters, each with the figure it rejected by (rules P1, P6).

```
type ▶ admitted ▶ alive ▶ schedulable ▶ selector │ concurrency_group ▶ loaded_limit ▶ disk ▶ max_per_node ▶ slot ▶
replicas ▶ exclusive ▶ vram ▶ backoff
```

Invariant: filters left of the bar don't depend on load: a node they reject helps nobody by becoming empty.
"""

from collections.abc import Callable
from typing import Final

import msgspec

from modelyard_events.decision import Figure
from modelyard_events.fleet import Settings
from modelyard_events.ids import ModelName, NodeName
from modelyard_events.selectors import Selector, format_selector, matches
from modelyard_projections.fleet import Alive, Fleet, NodeState, ReplicaState, Schedulable
from modelyard_projections.fleet.state import LoadFailures
from modelyard_services.policy.limits import max_loaded_models
from modelyard_services.policy.memory import Room, empty_room, room
from modelyard_services.policy.readings import Readings

REPLICAS_PER_NODE_MAX: Final = 900
"""Replicas of one node: all of them can end in one batch of at most 1,000 events (rule R2)."""

GPUS_TOLD_MAX: Final = 8
"""Of one node in one sentence: as many as most machines have."""

_BACKOFF_DOUBLINGS_MAX: Final = 60
"""A second becomes longer than any rest may be."""


class Wish(msgspec.Struct, frozen=True):
    """What is to be placed, with everything that filters ask about it.

    `per_gpu` is bytes on each of `gpus` devices, None where the footprint is unknown; `node` restricts the search.
    """

    model: ModelName
    now_ns: int
    selector: Selector = ()
    node: NodeName | None = None
    groups: tuple[str, ...] = ()
    gpus: int = 1
    per_gpu: int | None = None
    disk: int | None = None
    max_per_node: int | None = None
    binpack: bool = False


class Rejection(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why a node can't take it: the filter, by how much it missed, and who is in the way."""

    filter: str
    figure: Figure = None
    unit: str | None = None
    detail: str = ""


class Scene(msgspec.Struct, frozen=True):
    """What one wish is judged on."""

    fleet: Fleet
    readings: Readings
    wish: Wish

    def room(self, node: NodeState) -> Room:
        return room(self.fleet, node, self.readings.of(node.name))


Filter = Callable[[Scene, NodeState], Rejection | None]


def wrong_type(_scene: Scene, node: NodeState) -> Rejection | None:
    return None if node.node_type == "backend" else Rejection("type", detail=node.node_type)


def not_admitted(_scene: Scene, node: NodeState) -> Rejection | None:
    return None if node.admission == "approved" else Rejection("admitted", detail=node.admission)


def not_alive(_scene: Scene, node: NodeState) -> Rejection | None:
    if isinstance(node.liveness, Alive):
        return None
    return Rejection("alive", detail=node.liveness_name)


def not_schedulable(_scene: Scene, node: NodeState) -> Rejection | None:
    if isinstance(node.intent, Schedulable):
        return None
    return Rejection("schedulable", detail="draining" if hasattr(node.intent, "deadline_ns") else "cordoned")


def not_selected(scene: Scene, node: NodeState) -> Rejection | None:
    if matches(scene.wish.selector, node.labels):
        return None
    failing = tuple(term for term in scene.wish.selector if not matches((term,), node.labels))
    return Rejection("selector", detail=format_selector(failing))


def group_taken(scene: Scene, node: NodeState) -> Rejection | None:
    """Another model of one of our groups lives here, whatever its phase (rule R5)."""
    if scene.wish.groups:
        for replica in node.replicas:
            state = scene.fleet.replicas[replica]
            shared = shared_groups(scene.wish, state)
            if shared:
                return Rejection("concurrency_group", detail=f"{min(shared)} held by {state.model}")
    return None


def shared_groups(wish: Wish, state: ReplicaState) -> set[str]:
    """The groups that keep the wish off the replica's node, judged by those copied into `placed` (rule R5)."""
    return set() if state.model == wish.model else set(wish.groups).intersection(state.groups)


def loaded_limit(scene: Scene, node: NodeState) -> Rejection | None:
    """As many other models live here as the limit allows, loads under way included (rule C8)."""
    limit = max_loaded_models(scene.fleet, node)
    others = len(node.slots) - (scene.wish.model in node.slots)
    return Rejection("loaded_limit", limit) if limit and others >= limit else None


def disk_short(scene: Scene, node: NodeState) -> Rejection | None:
    """Unknown disk passes: nobody said it is full."""
    free = scene.readings.of(node.name).disk_free
    if scene.wish.disk is None or free is None:
        return None
    short = disk_needed(scene.fleet.settings, scene.wish.disk) - free
    return Rejection("disk", short, "bytes") if short > 0 else None


def enough_per_node(scene: Scene, node: NodeState) -> Rejection | None:
    limit = scene.wish.max_per_node
    if limit is None or len(node.slots.get(scene.wish.model, ())) < limit:
        return None
    return Rejection("max_per_node", limit)


def slot_taken(scene: Scene, node: NodeState) -> Rejection | None:
    cap = node.max_replicas_per_model
    return None if len(node.slots.get(scene.wish.model, ())) < cap else Rejection("slot", cap)


def node_full(_scene: Scene, node: NodeState) -> Rejection | None:
    return None if len(node.replicas) < REPLICAS_PER_NODE_MAX else Rejection("replicas", REPLICAS_PER_NODE_MAX)


def not_exclusive(scene: Scene, node: NodeState) -> Rejection | None:
    """A replica of unknown footprint has its node for itself until it is measured (rule R4)."""
    if not node.replicas:
        return None
    if scene.wish.per_gpu is None:
        return Rejection("exclusive", detail="the footprint is unknown and the node isn't empty")
    holder = next((r for r in node.replicas if scene.fleet.replicas[r].exclusive), None)
    return Rejection("exclusive", detail=f"{holder} isn't measured yet") if holder else None


def vram_short(scene: Scene, node: NodeState) -> Rejection | None:
    free = scene.room(node)
    rejected = vram_rejection(scene.wish, node, free.fit(scene.wish.gpus))
    return None if rejected is None else msgspec.structs.replace(rejected, detail=free_by_gpu(node, free))


def backing_off(scene: Scene, node: NodeState) -> Rejection | None:
    failures = node.load_failures.get(scene.wish.model)
    left_ns = backoff_until_ns(scene.fleet.settings, failures) - scene.wish.now_ns if failures else 0
    return Rejection("backoff", round(left_ns / 1e9, 1), "seconds") if left_ns > 0 else None


FIXED_FILTERS: Final[dict[str, Filter]] = {
    "type": wrong_type,
    "admitted": not_admitted,
    "alive": not_alive,
    "schedulable": not_schedulable,
    "selector": not_selected,
}
LOAD_FILTERS: Final[dict[str, Filter]] = {
    "concurrency_group": group_taken,
    "loaded_limit": loaded_limit,
    "disk": disk_short,
    "max_per_node": enough_per_node,
    "slot": slot_taken,
    "replicas": node_full,
    "exclusive": not_exclusive,
    "vram": vram_short,
    "backoff": backing_off,
}
FILTERS: Final[dict[str, Filter]] = {**FIXED_FILTERS, **LOAD_FILTERS}


def rejection(scene: Scene, node: NodeState, *, ignoring: str | None = None) -> Rejection | None:
    """The first filter that rejects `node`; `ignoring` one asks what would be if that passed."""
    for name, judge in FILTERS.items():
        if name != ignoring:
            found = judge(scene, node)
            if found is not None:
                return found
    return None


def vram_rejection(wish: Wish, node: NodeState, fit: int) -> Rejection | None:
    """Whether `fit` bytes a device are too few; an unknown footprint needs any at all, where there are devices."""
    needed = vram_needed(wish, node)
    if needed <= fit:
        return None
    # The gap is to what the devices have; where there are too few of them, all of it is missing.
    return Rejection("vram", needed - max(fit, 0), "bytes")


def free_by_gpu(node: NodeState, free: Room) -> str:
    """`GPUs of n1 have 8.0, 6.0 GiB free`, since their sum says little; nothing of a node with one device."""
    if len(free.devices) <= 1:
        return ""
    sizes = [f"{size / 2**30:.1f}" for _, size in sorted(free.devices.items())]
    more = ", …" if len(sizes) > GPUS_TOLD_MAX else ""
    return f"GPUs of {node.name} have {', '.join(sizes[:GPUS_TOLD_MAX])}{more} GiB free"


def lacking(wish: Wish, node: NodeState) -> str:
    """Where memory is to be freed: `n1`, `one GPU of n1`, `each of 2 GPUs of n1`."""
    if wish.gpus > 1:
        return f"each of {wish.gpus} GPUs of {node.name}"
    return f"one GPU of {node.name}" if len(node.devices) > 1 else node.name


def vram_needed(wish: Wish, node: NodeState) -> int:
    """Bytes that must be free on each of its devices; of an unknown footprint nothing but that there are any."""
    return int(bool(node.devices) or wish.gpus > 1) if wish.per_gpu is None else wish.per_gpu


def fits_when_empty(scene: Scene, node: NodeState) -> bool:
    """Whether `node` could hold it with nothing else there: below its budget, and within its caps."""
    disk_total, wish = node.facts.disk_total, scene.wish
    if wish.disk is not None and disk_total is not None and disk_needed(scene.fleet.settings, wish.disk) > disk_total:
        return False
    return fits_in_budget(wish, node)


def fits_in_budget(wish: Wish, node: NodeState) -> bool:
    """Whether the memory of `node` would do if nothing held any; where not, `vram` rejects it in any case."""
    return vram_rejection(wish, node, empty_room(node).fit(wish.gpus)) is None


def disk_needed(settings: Settings, payload: int) -> int:
    """The payload and its headroom: a full disk takes the whole node with it (P1)."""
    return payload + max(round(payload * settings.disk_headroom_share), settings.disk_headroom_bytes)


def backoff_until_ns(settings: Settings, failures: LoadFailures) -> int:
    """When a node may try a model again that failed to load there: twice as long after each failure (rule T6)."""
    doublings = min(failures.count - 1, _BACKOFF_DOUBLINGS_MAX)
    seconds = min(settings.load_backoff_seconds * 2.0**doublings, settings.load_backoff_max_seconds)
    return failures.last_ns + round(seconds * 1e9)
