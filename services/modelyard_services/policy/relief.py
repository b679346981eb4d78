"""What may have made room on a node since the last look (rule C5, trap X17).

Invariant: a node's change is told with the labels it had before and after, so that it concerns the models whose
selector matched either, and no other.
"""

from collections.abc import Iterator, Mapping

import msgspec

from modelyard_events.ids import IncarnationId, NodeName, ReservationId
from modelyard_events.selectors import Selector, matches
from modelyard_projections.fleet import Alive, Fleet, NodeState, Schedulable


class Mark(msgspec.Struct, frozen=True):
    """What of a node decides about room there."""

    incarnation: IncarnationId
    approved: bool
    alive: bool
    schedulable: bool
    labels: Mapping[str, str]
    capacity: tuple[object, ...]
    reservations: frozenset[ReservationId]
    reserved: int


class Relief(msgspec.Struct, frozen=True):
    """One node's change: `cause` says what happened to it."""

    node: NodeName
    cause: str
    before: Mapping[str, str] | None
    after: Mapping[str, str]

    def concerns(self, selector: Selector) -> bool:
        """Whether it is about a node that the selector matched before or matches now."""
        return matches(selector, self.after) or (self.before is not None and matches(selector, self.before))


Marks = Mapping[NodeName, Mark]


def mark_all(fleet: Fleet) -> Marks:
    """What of every node that can host models decides about room there now."""
    return {node.name: _mark(node) for node in fleet.nodes.values() if node.node_type == "backend"}


def reliefs(before: Marks, after: Marks) -> Iterator[Relief]:
    """The changes between two looks that may have made room."""
    for name, mark in after.items():
        old = before.get(name)
        cause = "joined" if old is None else _cause(old, mark)
        if cause is not None:
            yield Relief(name, f"node {name}: {cause}", None if old is None else old.labels, mark.labels)


def _mark(node: NodeState) -> Mark:
    return Mark(
        node.incarnation,
        node.admission == "approved",
        isinstance(node.liveness, Alive),
        isinstance(node.intent, Schedulable),
        node.labels,
        (
            node.devices,
            node.budget,
            node.max_replicas_per_model,
            node.watchdog.max_loaded_models,
            node.facts.disk_total,
        ),
        frozenset(node.reservations),
        node.vram_reserved,
    )


def _cause(old: Mark, new: Mark) -> str | None:
    """The first of the changes that may have made room."""
    causes = {
        "joined": new.incarnation != old.incarnation,
        "approved": new.approved and not old.approved,
        "recovered": new.alive and not old.alive,
        "resumed": new.schedulable and not old.schedulable,
        "labels changed": new.labels != old.labels,
        "capacity changed": new.capacity != old.capacity,
        "memory freed": new.reserved < old.reserved or not old.reservations <= new.reservations,
    }
    return next((cause for cause, holds in causes.items() if holds), None)
