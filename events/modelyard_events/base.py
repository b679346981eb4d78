"""The base of every event: frozen, tagged, told apart by `type` on the wire.

Invariant: a published tag keeps its shape and meaning for ever; what changes gets a new tag and an upcaster.
"""

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True, kw_only=True, gc=False):
    """Something that happened or was decided, in the past tense. Its tag is `<kind>.<name>.v<n>`."""


class NodeEvent(Event, frozen=True, kw_only=True):
    """An event on a node's subject: the node, its replicas, its reservations."""

    node: str


class ModelEvent(Event, frozen=True, kw_only=True):
    """An event on a model's subject."""

    model: str


class FleetEvent(Event, frozen=True, kw_only=True):
    """An event on the fleet's own subject."""
