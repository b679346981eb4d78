"""Steps from retired tags to their successors, on plain dictionaries, before the typed decode.

Invariant: a chain ends at a current tag; each step is pure and has a golden file of the tag it retires.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

Body = dict[str, Any]


def upcast(event: Body) -> Body:
    """`event` brought up to its current tag, step by step."""
    while (step := UPCASTERS.get(event["type"])) is not None:
        event = step(event)
    return event


def _departure_names_its_incarnation(event: Body) -> Body:
    # v0 is from the first design drafts, before incarnations were part of every liveness event; it stays as
    # the proof that a retired tag goes on decoding.
    return {**event, "type": "node.departed.v1", "incarnation": event.get("incarnation", "unknown")}


UPCASTERS: Final[Mapping[str, Callable[[Body], Body]]] = {
    "node.departed.v0": _departure_names_its_incarnation,
}
