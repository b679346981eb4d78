"""What models there are: define, redefine, remove (rules R5, R6).

Invariant: a definition ends nothing by itself; a removal drains all that runs in the same append. Of all definitions
that want one name, as their own or as an alias, one is appended at most: each writes to the aggregate of that name, so
whoever comes second decides again and is refused (ADR 0019).
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.model import (
    ModelAliasClaimed,
    ModelDeclaredSatisfiable,
    ModelDefined,
    ModelRedefined,
    ModelRemoved,
)
from modelyard_events.names import model_name
from modelyard_events.spec import ModelSpec, revision_of
from modelyard_projections.fleet import Fleet, ModelState
from modelyard_services.errors import ConflictError, InvalidRequestError, ModelUnknownError
from modelyard_services.policy.ending import begin_drain

SPEC_BYTES_MAX: Final = 40 * 1024
"""A placement copies the spec beside its decision of 16 KiB, and an event has at most 64 KiB."""

ALIASES_MAX: Final = 100
"""Each is claimed by an event of its own, and one append takes a thousand."""


class GroupConflict(msgspec.Struct, frozen=True):
    """Two replicas on one node whose models would share a group: reported, never ended for it (R5)."""

    node: NodeName
    group: str
    replica: ReplicaId
    other_model: ModelName
    other_replica: ReplicaId

    def __str__(self) -> str:
        return f"group {self.group} on node {self.node} is shared with the running {self.other_model}"


def define(
    fleet: Fleet, *, model: ModelName, spec: ModelSpec, among: Mapping[ModelName, ModelSpec | None] | None = None
) -> list[AnyEvent]:
    """Define `model`, or change its definition; the same again is nothing.

    `among` are the models that are defined, or removed (None), together with it; that these agree is seen before.

    Raises:
        InvalidValueError: the name, or an alias, can't be one.
        ConflictError: the name, or an alias, is another model's.
        InvalidRequestError: the spec is too large to be copied into placements, or has too many aliases.
    """
    name = model_name(model)
    size = len(msgspec.json.encode(spec))
    if size > SPEC_BYTES_MAX:
        raise InvalidRequestError(
            f"the spec of {name!r} takes {size} bytes; at most {SPEC_BYTES_MAX} are kept", field="environment"
        )
    if len(spec.aliases) > ALIASES_MAX:
        raise InvalidRequestError(
            f"{name!r} has {len(spec.aliases)} aliases; {ALIASES_MAX} is the most", field="aliases"
        )
    _check_names(fleet, name, spec, {} if among is None else among)
    revision = revision_of(spec)
    before = fleet.models.get(name)
    spec = _with_known_estimate(spec, before)
    if before is None or before.spec is None or before.revision is None:
        events: list[AnyEvent] = [ModelDefined(model=name, spec=spec, revision=revision)]
        return events + _claimed(name, spec.aliases) + _closed(before, "defined")
    if before.spec == spec:
        return []
    changed: list[AnyEvent] = [ModelRedefined(model=name, spec=spec, revision=revision, previous=before.revision)]
    gained = [alias for alias in spec.aliases if alias not in before.spec.aliases]
    return changed + _claimed(name, gained) + _closed(before, "redefined")


def _claimed(model: ModelName, aliases: Iterable[str]) -> list[AnyEvent]:
    """Told in the aggregate of each name: the guard for what `_check_names` saw of it."""
    return [ModelAliasClaimed(model=alias, holder=model) for alias in aliases]


def _with_known_estimate(spec: ModelSpec, before: ModelState | None) -> ModelSpec:
    """Whoever can't look at the files doesn't unsay what somebody saw of the same ones (R4)."""
    known = before.spec if before is not None else None
    if known is None or spec.estimate is not None or not spec.files:
        return spec
    if (known.files, known.context_length) != (spec.files, spec.context_length):
        return spec
    return msgspec.structs.replace(spec, estimate=known.estimate)


def _check_names(fleet: Fleet, model: ModelName, spec: ModelSpec, among: Mapping[ModelName, ModelSpec | None]) -> None:
    """No two models answer to one name."""

    def spec_of(name: ModelName) -> ModelSpec | None:
        state = fleet.models.get(name)
        return among.get(name, None if state is None else state.spec)

    for alias in spec.aliases:
        other = model_name(alias, field="aliases")
        if other == model or spec_of(other) is not None:
            raise ConflictError(
                f"{alias!r} is a model; it can't be an alias of {model!r}", field="aliases", value=alias
            )
    for name in (model, *spec.aliases):
        for holder in fleet.aliases.get(name, ()):
            held = spec_of(holder)
            if holder != model and held is not None and name in held.aliases:
                field = "name" if name == model else "aliases"
                raise ConflictError(f"{name!r} is an alias of model {holder!r} already", field=field, value=name)


def remove(fleet: Fleet, *, model: ModelName) -> list[AnyEvent]:
    """End the definition; what runs drains. A schedule stays, kept for a definition to come (S1).

    Raises:
        ModelUnknownError: there is no such definition, so nothing was removed (X28).
    """
    state = fleet.models.get(model)
    if state is None or state.spec is None:
        raise ModelUnknownError(f"no model is named {model!r}; nothing was removed", field="model", value=model)
    deadline = fleet.settings.drain_deadline_seconds
    drained = begin_drain(fleet, state.replicas, reason="requested", deadline_seconds=deadline)
    return [ModelRemoved(model=model), *_closed(state, "removed"), *drained]


def _closed(state: ModelState | None, cause: str) -> list[AnyEvent]:
    """The breaker's end: it judged another definition (C5)."""
    if state is None or state.breaker is None:
        return []
    return [ModelDeclaredSatisfiable(model=state.name, cause=cause)]


def group_conflicts(fleet: Fleet, *, model: ModelName, spec: ModelSpec) -> list[GroupConflict]:
    """The running neighbours that `spec` would forbid its model's running replicas to have."""
    found = []
    for replica in fleet.replicas_of(model):
        for other in fleet.replicas_on(replica.node):
            shared = set(spec.concurrency_groups).intersection(other.groups)
            if other.model != model and shared:
                found.append(GroupConflict(replica.node, min(shared), replica.id, other.model, other.id))
    return found
