"""A worker asks for its node's name: who may have it, and what of the life before goes on (rules N2-N4).

```
no such node ───────────────▶ registered, incarnation started (approved, where policy approves)
same incarnation ───────────▶ nothing; recovered if it was lost
new incarnation, the old one
   yields ──────────────────▶ incarnation started, living processes adopted, other replicas end
   answers and can't be proven ─▶ refused, naming it
```

Invariant: registration changes no admission, operator label, intent or override of a node that exists (X2, X9);
two living workers never share a name.
"""

import re
from typing import Final, assert_never

import msgspec

from modelyard_events.envelope import AnyEvent
from modelyard_events.errors import InvalidValueError
from modelyard_events.ids import IncarnationId
from modelyard_events.names import node_name
from modelyard_events.node import (
    Gpu,
    NodeApproved,
    NodeFacts,
    NodeIncarnationStarted,
    NodeRecovered,
    NodeRegistered,
)
from modelyard_events.replica import ReplicaAdopted, ReplicaLoadStarted
from modelyard_events.requests import Register
from modelyard_events.sizes import SIZE_MAX
from modelyard_events.spec import GPUS_MAX
from modelyard_events.telemetry import ReplicaReading
from modelyard_projections.fleet import Alive, Departed, Draining, Fleet, Lost, NodeState, Placed, ReplicaState
from modelyard_services.errors import ConflictError, NameTakenError, StaleFactError, UnauthorizedError
from modelyard_services.policy.capacity import check_max_replicas
from modelyard_services.policy.ending import end
from modelyard_services.policy.labels import checked_labels
from modelyard_services.policy.tokens import digest_of, is_secret_of, registration_token_of

ADDRESS_LENGTH_MAX: Final = 300
"""Characters of `host:port`: a DNS name has 253."""

FACTS_BYTES_MAX: Final = 48 * 1024
"""A machine's facts as JSON: they share an event of 64 KiB with their envelope."""

_INCARNATION: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


def register(
    fleet: Fleet, request: Register, *, auto_approve: bool, silent: IncarnationId | None = None
) -> list[AnyEvent]:
    """Give the name to the worker that asks for it.

    Args:
        fleet: what is.
        request: the worker's claim.
        auto_approve: whether a node's first registration approves it at once (N4).
        silent: the incarnation that was pinged for this claim and didn't answer (N3).

    Raises:
        UnauthorizedError: no registration token has that secret.
        InvalidValueError: a field of the request can't be what it says.
        NameTakenError: another worker has the name, and lives.
        ConflictError: the name is registered with another node type.
        StaleFactError: this incarnation has departed.
    """
    if registration_token_of(fleet, request.token) is None:
        raise UnauthorizedError("the registration token is unknown or was revoked; ask an operator for one")
    check_request(request)
    node = fleet.nodes.get(request.node)
    if node is None:
        return _first(request, auto_approve=auto_approve)
    if node.node_type != request.node_type:
        detail = f"node {node.name!r} is registered as {node.node_type}; remove it, or take another name"
        raise ConflictError(detail, field="node_type", value=request.node_type)
    if node.incarnation == request.incarnation:
        return _again(node, request)
    if _yields(node, request) or silent == node.incarnation:
        return [_started(request), *_inherit(fleet, node, request)]
    raise _taken(node)


def challenged(fleet: Fleet, request: Register) -> IncarnationId | None:
    """The incarnation to ping before `register`: it has the name, and only its silence makes it yield (N3)."""
    node = fleet.nodes.get(request.node)
    if node is None or node.incarnation == request.incarnation or _yields(node, request):
        return None
    return node.incarnation


def check_request(request: Register) -> None:
    """Refuse what can't be a worker.

    Raises:
        InvalidValueError: names the field.
    """
    node_name(request.node)
    if _INCARNATION.fullmatch(request.incarnation) is None:
        raise InvalidValueError("incarnation", request.incarnation[:20], "is not 1-64 letters, digits, '-' or '_'")
    if not request.secret:
        raise InvalidValueError("secret", "", "is empty; it proves the worker's state directory")
    facts = request.facts
    check_address(facts.address)
    check_max_replicas(facts.max_replicas_per_model)
    check_capacity(facts.gpus, facts.vram_total, facts.ram_total, facts.disk_total)
    checked_labels({str(key): value for key, value in facts.labels.items()})
    _check_size(facts)


def check_address(address: str) -> None:
    """Refuse an address that nobody could reach.

    Raises:
        InvalidValueError: it is empty, too long or unprintable.
    """
    if not address or len(address) > ADDRESS_LENGTH_MAX or not address.isprintable():
        raise InvalidValueError("address", address[:20], "is not host:port")


def check_capacity(gpus: tuple[Gpu, ...], *sizes: int | None) -> None:
    """Refuse devices and sizes that no machine has.

    Raises:
        InvalidValueError: a device stands twice, there are too many, or a size is out of range.
    """
    indexes = [gpu.index for gpu in gpus]
    if len(indexes) > GPUS_MAX or len(set(indexes)) != len(indexes) or min(indexes, default=0) < 0:
        raise InvalidValueError("gpus", indexes, f"are not up to {GPUS_MAX} different indexes from 0")
    for size in (*sizes, *(gpu.vram_total for gpu in gpus)):
        if size is not None and not 0 <= size <= SIZE_MAX:
            raise InvalidValueError("facts", size, f"is out of range; sizes lie in 0 … {SIZE_MAX} bytes")


def _check_size(facts: NodeFacts) -> None:
    size = len(msgspec.json.encode(facts))
    if size > FACTS_BYTES_MAX:
        raise InvalidValueError("facts", f"{size} bytes", f"are more than {FACTS_BYTES_MAX} bytes; shorten labels")


def _first(request: Register, *, auto_approve: bool) -> list[AnyEvent]:
    events: list[AnyEvent] = [NodeRegistered(node=request.node, node_type=request.node_type), _started(request)]
    return [*events, NodeApproved(node=request.node, automatic=True)] if auto_approve else events


def _again(node: NodeState, request: Register) -> list[AnyEvent]:
    if not is_secret_of(request.secret, node.secret_digest):
        raise _taken(node)
    match node.liveness:
        case Departed():
            raise StaleFactError(f"incarnation {node.incarnation} has departed; a restart begins a new one")
        case Lost():
            return [NodeRecovered(node=node.name, incarnation=node.incarnation)]
        case Alive():
            return []
        case _:
            assert_never(node.liveness)


def _yields(node: NodeState, request: Register) -> bool:
    """Whether the life that has the name gives it up without being asked."""
    return not isinstance(node.liveness, Alive) or is_secret_of(request.secret, node.secret_digest)


def _taken(node: NodeState) -> NameTakenError:
    detail = (
        f"node {node.name!r} is held by incarnation {node.incarnation} at {node.facts.address}, which is alive; "
        "stop that worker or take another name"
    )
    return NameTakenError(detail, field="node", value=node.name)


def _started(request: Register) -> NodeIncarnationStarted:
    return NodeIncarnationStarted(
        node=request.node,
        incarnation=request.incarnation,
        facts=request.facts,
        secret_digest=digest_of(request.secret),
    )


def _inherit(fleet: Fleet, node: NodeState, request: Register) -> list[AnyEvent]:
    """Adopt the replicas whose processes live; the others end in the same append (N2)."""
    inventory = {reading.replica: reading for reading in request.inventory}
    adopted: list[AnyEvent] = []
    missing = []
    for state in fleet.replicas_on(node.name):
        reading = inventory.get(state.id)
        if reading is not None and _is_process_of(reading, state):
            adopted.append(_adopt(state, reading, request.incarnation))
        else:
            missing.append(state.id)
    detail = f"not among the processes that incarnation {request.incarnation} found"
    return adopted + end(fleet, missing, reason="reported_missing", detail=detail)


def _is_process_of(reading: ReplicaReading, state: ReplicaState) -> bool:
    """Whether the process found is the very one: by key, by what it runs, and by pid and start (W4)."""
    if reading.key != f"{state.model}#{state.replica_index}" or reading.revision != state.revision:
        return False
    if isinstance(state.phase, Placed):
        # Its start was never told, so there is nothing to compare with; it may not run before its victims ended.
        return not state.waits_for
    dying = reading.activity == "stopping" and not isinstance(state.phase, Draining)
    return reading.process == state.process and not dying


def _adopt(state: ReplicaState, reading: ReplicaReading, incarnation: IncarnationId) -> AnyEvent:
    if isinstance(state.phase, Placed):
        return ReplicaLoadStarted(node=state.node, replica=state.id, incarnation=incarnation, process=reading.process)
    return ReplicaAdopted(
        node=state.node,
        replica=state.id,
        incarnation=incarnation,
        process=reading.process,
        address=reading.address,
    )
