"""What operators set of the watchdog on one node, while it runs (rules C8, N11).

Invariant: what is set holds until it is given back to the fleet, whatever the worker does; it ends nothing by itself
but by what the watchdog then sees, and a change that changes nothing is no event.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import NodeName
from modelyard_events.node import NodeWatchdogOverridden, WatchdogOverrides
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import NotFoundError
from modelyard_services.policy.known import known_node
from modelyard_services.policy.settings import checked_setting, refuse_unknown

FIELDS: Final = WatchdogOverrides.__struct_fields__


def patch_watchdog(fleet: Fleet, *, node: NodeName, patch: Mapping[str, object]) -> list[AnyEvent]:
    """Change the figures named; None gives one back to the fleet."""
    before = known_node(fleet, node).watchdog
    return _become(fleet, node, {**msgspec.structs.asdict(before), **_checked(patch)})


def replace_watchdog(fleet: Fleet, *, node: NodeName, overrides: Mapping[str, object]) -> list[AnyEvent]:
    """The node's own figures are these; all others are the fleet's."""
    return _become(fleet, node, _checked(overrides))


def clear_watchdog(fleet: Fleet, *, node: NodeName) -> list[AnyEvent]:
    """All figures are the fleet's again.

    Raises:
        NotFoundError: the node has none of its own (X28).
    """
    if known_node(fleet, node).watchdog == WatchdogOverrides():
        raise NotFoundError(f"the watchdog of node {node!r} isn't overridden", field="watchdog")
    return _become(fleet, node, {})


def _checked(given: Mapping[str, object]) -> dict[str, object]:
    refuse_unknown(given, FIELDS, what="figure of a node's watchdog")
    return {field: None if value is None else checked_setting(field, value) for field, value in given.items()}


def _become(fleet: Fleet, node: NodeName, fields: Mapping[str, object]) -> list[AnyEvent]:
    before, wanted = known_node(fleet, node).watchdog, msgspec.convert(fields, WatchdogOverrides)
    changed = tuple(field for field in FIELDS if getattr(before, field) != getattr(wanted, field))
    return [NodeWatchdogOverridden(node=node, overrides=wanted, changed=changed)] if changed else []
