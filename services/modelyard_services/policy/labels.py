"""Operator labels of a node, set and removed, many in one event (rule N5).

Invariant: only the operator's own labels change here; a worker's under the same key stays beneath and shows again
once the operator's is removed.
"""

from collections.abc import Mapping
from typing import Final

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import LabelKey, NodeName
from modelyard_events.names import label_value, operator_label_key
from modelyard_events.node import NodeLabelsChanged
from modelyard_projections.fleet import Fleet, NodeState
from modelyard_services.errors import ConflictError, NotFoundError
from modelyard_services.policy.known import known_node

LABELS_MAX: Final = 64
"""Labels of one owner on a node: selectors have 32 terms at most, and all must fit into one event."""


def patch_labels(fleet: Fleet, *, node: NodeName, changes: Mapping[str, str | None]) -> list[AnyEvent]:
    """Set each label to its value; None removes it if the operator has it."""
    state = known_node(fleet, node)
    removed = {operator_label_key(key) for key, value in changes.items() if value is None}
    wanted = checked_labels({key: value for key, value in changes.items() if value is not None})
    kept = {key: value for key, value in state.operator_labels.items() if key not in removed}
    return _become(state, kept | wanted)


def replace_labels(fleet: Fleet, *, node: NodeName, labels: Mapping[str, str]) -> list[AnyEvent]:
    """The operator's labels are `labels` and no others."""
    return _become(known_node(fleet, node), checked_labels(labels))


def remove_label(fleet: Fleet, *, node: NodeName, key: str) -> list[AnyEvent]:
    """Remove one operator label.

    Raises:
        ConflictError: the label is the worker's, who reports it again and again.
        NotFoundError: there is no such label (X28).
    """
    state = known_node(fleet, node)
    label = operator_label_key(key)
    if label in state.operator_labels:
        return [NodeLabelsChanged(node=node, removed=(label,))]
    if label in state.facts.labels:
        detail = f"label {key!r} of node {node!r} is its worker's; remove it there, or set another value over it"
        raise ConflictError(detail, field="label", value=key)
    raise NotFoundError(f"node {node!r} has no label {key!r}", field="label", value=key)


def checked_labels(labels: Mapping[str, str]) -> dict[LabelKey, str]:
    """`labels` as a worker or an operator may give them.

    Raises:
        InvalidValueError: a key is the system's or can't be one, a value can't be one, or there are too many.
    """
    if len(labels) > LABELS_MAX:
        raise InvalidValueError("labels", f"{len(labels)} labels", f"are more than {LABELS_MAX}")
    return {operator_label_key(key): label_value(value, field=f"label {key}") for key, value in labels.items()}


def _become(state: NodeState, wanted: Mapping[LabelKey, str]) -> list[AnyEvent]:
    if len(wanted) > LABELS_MAX:
        raise InvalidValueError("labels", f"{len(wanted)} labels", f"are more than {LABELS_MAX}")
    before = state.operator_labels
    changed = {key: value for key, value in wanted.items() if before.get(key) != value}
    removed = tuple(sorted(before.keys() - wanted.keys()))
    return [NodeLabelsChanged(node=state.name, changed=changed, removed=removed)] if changed or removed else []
