"""What differs between two states of the fleet, entity by entity and field by field (rule H3). Pure.

Invariant: an entity is told exactly when its view differs, telemetry aside; fields are named as the API names them.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, Literal

import msgspec

from modelyard_projections.fleet import Fleet, NodeState, ReplicaState
from modelyard_projections.fleet.state import RegistrationToken, Token
from modelyard_services.api import views
from modelyard_services.api.token_views import token_view

Kind = Literal["node", "model", "replica", "reservation", "settings", "token", "registration_token"]

KINDS: Final[tuple[Kind, ...]] = ("settings", "token", "registration_token", "node", "model", "replica", "reservation")
"""In the order in which one leads to the next."""

BOOKKEEPING: Final = frozenset({"sequence"})
"""Fields that change with every event and say nothing by themselves."""

Document = dict[str, Any]
Shown = tuple[object, Callable[[], object]]
"""What an entity's view depends on, to be compared first, and how to make the view."""


class FieldChange(msgspec.Struct, frozen=True):
    """A field's value before and after; null where it wasn't, or isn't any more."""

    field: str
    before: Any
    after: Any


class Change(msgspec.Struct, frozen=True):
    """What became of one entity. One that was added or removed shows all its fields."""

    kind: Kind
    name: str
    change: Literal["added", "removed", "changed"]
    fields: list[FieldChange]


def difference(before: Fleet, after: Fleet) -> Iterator[Change]:
    """Every change from `before` to `after`, by kind and then by name."""
    for kind in KINDS:
        old, new = _SHOWN[kind](before), _SHOWN[kind](after)
        for name in sorted(old.keys() | new.keys()):
            change = _change(kind, name, old.get(name), new.get(name))
            if change is not None:
                yield change


def _change(kind: Kind, name: str, old: Shown | None, new: Shown | None) -> Change | None:
    if old is not None and new is not None and old[0] == new[0]:
        return None
    fields = _fields(_document(old), _document(new))
    if not fields:
        return None
    if old is None:
        return Change(kind, name, "added", fields)
    return Change(kind, name, "removed" if new is None else "changed", fields)


def _document(shown: Shown | None) -> Document:
    if shown is None:
        return {}
    document: Document = msgspec.to_builtins(shown[1](), str_keys=True)
    return document


def _fields(old: Document, new: Document) -> list[FieldChange]:
    flat_old, flat_new = dict(_flat(old)), dict(_flat(new))
    names = [*flat_old, *(name for name in flat_new if name not in flat_old)]
    return [
        FieldChange(name, flat_old.get(name), flat_new.get(name))
        for name in names
        if flat_old.get(name) != flat_new.get(name)
    ]


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Fields by their path: `labels.zone.value`, `gpus.0.vram_reserved`."""
    parts: list[tuple[str, object]]
    match value:
        case dict():
            parts = [(str(key), one) for key, one in value.items() if prefix or key not in BOOKKEEPING]
        case list() if any(isinstance(one, dict) for one in value):
            parts = [(str(index), one) for index, one in enumerate(value)]
        case _:
            yield prefix, value
            return
    for key, one in parts:
        yield from _flat(one, f"{prefix}.{key}" if prefix else key)


def _nodes(fleet: Fleet) -> Mapping[str, Shown]:
    return {node.name: ((node, fleet.settings), partial(_node, node, fleet)) for node in fleet.nodes.values()}


def _node(node: NodeState, fleet: Fleet) -> views.NodeView:
    return views.node_view(node, fleet.settings, None, now_ns=fleet.time_ns, monotonic_ns=0)


def _models(fleet: Fleet) -> Mapping[str, Shown]:
    return {model.name: (model, partial(views.model_view, model, fleet)) for model in fleet.models.values()}


def _replicas(fleet: Fleet) -> Mapping[str, Shown]:
    return {
        replica.id: (_depends(replica, fleet), partial(_replica, replica, fleet)) for replica in fleet.replicas.values()
    }


def _depends(replica: ReplicaState, fleet: Fleet) -> object:
    node = fleet.nodes[replica.node]
    held = fleet.reservations.get(replica.reservation)
    model = fleet.models.get(replica.model)
    return (replica, node.liveness, node.watchdog, fleet.settings, held, model and (model.spec, model.schedule))


def _replica(replica: ReplicaState, fleet: Fleet) -> views.ReplicaView:
    return views.replica_view(replica, fleet, None, monotonic_ns=0)


def _reservations(fleet: Fleet) -> Mapping[str, Shown]:
    return {held.id: (held, partial(views.reservation_view, held)) for held in fleet.reservations.values()}


def _settings(fleet: Fleet) -> Mapping[str, Shown]:
    return {"settings": ((fleet.settings, fleet.mass_loss), lambda: views.settings_view(fleet))}


def _tokens(tokens: Mapping[str, Token] | Mapping[str, RegistrationToken]) -> Mapping[str, Shown]:
    return {token.name: (token, partial(token_view, token)) for token in tokens.values()}


_SHOWN: Final[Mapping[Kind, Callable[[Fleet], Mapping[str, Shown]]]] = {
    "settings": _settings,
    "token": lambda fleet: _tokens(fleet.tokens),
    "registration_token": lambda fleet: _tokens(fleet.registration_tokens),
    "node": _nodes,
    "model": _models,
    "replica": _replicas,
    "reservation": _reservations,
}
