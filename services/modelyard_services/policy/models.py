"""What models there are: define, redefine, remove (rules R5, R6).

Invariant: a definition ends nothing by itself; a removal drains all that runs in the same append.
"""

from typing import Final

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.ids import ModelName, NodeName, ReplicaId
from modelyard_events.model import ModelDeclaredSatisfiable, ModelDefined, ModelRedefined, ModelRemoved
from modelyard_events.names import model_name
from modelyard_events.spec import ModelSpec, revision_of
from modelyard_projections.fleet import Fleet
from modelyard_services.errors import InvalidRequestError, ModelUnknownError
from modelyard_services.policy.ending import begin_drain

SPEC_BYTES_MAX: Final = 40 * 1024
"""A placement copies the spec beside its decision of 16 KiB, and an event has at most 64 KiB."""


class GroupConflict(msgspec.Struct, frozen=True):
    """Two replicas on one node whose models would share a group: reported, never ended for it (R5)."""

    node: NodeName
    group: str
    replica: ReplicaId
    other_model: ModelName
    other_replica: ReplicaId

    def __str__(self) -> str:
        return f"group {self.group} on node {self.node} is shared with the running {self.other_model}"


def define(fleet: Fleet, *, model: ModelName, spec: ModelSpec) -> list[AnyEvent]:
    """Define `model`, or change its definition; the same again is nothing.

    Raises:
        InvalidValueError: the name can't be one.
        InvalidRequestError: the spec is too large to be copied into placements.
    """
    name = model_name(model)
    size = len(msgspec.json.encode(spec))
    if size > SPEC_BYTES_MAX:
        raise InvalidRequestError(
            f"the spec of {name!r} takes {size} bytes; at most {SPEC_BYTES_MAX} are kept", field="environment"
        )
    revision = revision_of(spec)
    before = fleet.models.get(name)
    if before is None or before.spec is None or before.revision is None:
        return [ModelDefined(model=name, spec=spec, revision=revision)]
    if before.spec == spec:
        return []
    changed: list[AnyEvent] = [ModelRedefined(model=name, spec=spec, revision=revision, previous=before.revision)]
    if before.breaker is not None:
        changed.append(ModelDeclaredSatisfiable(model=name, cause="redefined"))
    return changed


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
    return [ModelRemoved(model=model), *drained]


def group_conflicts(fleet: Fleet, *, model: ModelName, spec: ModelSpec) -> list[GroupConflict]:
    """The running neighbours that `spec` would forbid its model's running replicas to have."""
    found = []
    for replica in fleet.replicas_of(model):
        for other in fleet.replicas_on(replica.node):
            shared = set(spec.concurrency_groups).intersection(other.groups)
            if other.model != model and shared:
                found.append(GroupConflict(replica.node, min(shared), replica.id, other.model, other.id))
    return found
