"""The fleet as rows: what the read model holds of each entity, and nothing the log doesn't say. Pure.

Invariant: a row holds the whole state of its entity (`state`) beside the columns that queries filter and sort by,
so two fleets that differ anywhere differ in a row, and a new field of the state reaches its row by itself.
"""

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, Literal, assert_never

import msgspec

from modelyard_events.fleet import Role, Settings
from modelyard_events.ids import ModelName, NodeName, ReplicaId, ReservationId
from modelyard_events.node import NodeType
from modelyard_events.replica import EndReason
from modelyard_events.reservation import OperatorHolder, ReplicaHolder
from modelyard_events.selectors import format_selector
from modelyard_events.sizes import format_budget
from modelyard_events.spec import Autoscale, ScheduleSource
from modelyard_projections.fleet.picture import FleetState, Touched
from modelyard_projections.fleet.state import (
    Admission,
    Draining,
    IntentName,
    LivenessName,
    Lost,
    ModelState,
    NodeDraining,
    NodeState,
    PhaseName,
    Ready,
    RegistrationToken,
    ReplicaState,
    ReservationState,
    ScheduleState,
    Token,
)

SETTINGS: Final[Touched] = ("settings", "settings")
"""The one entity that exists from the beginning."""

Key = tuple[str, ...]


class Row(msgspec.Struct, frozen=True):
    """A row of `table`, told apart by the columns of `primary_key`."""

    table: ClassVar[str]
    primary_key: ClassVar[tuple[str, ...]]

    @property
    def identity(self) -> Key:
        """The values of the primary key."""
        return tuple(getattr(self, column) for column in self.primary_key)


class NodeRow(Row, frozen=True):
    table: ClassVar[str] = "nodes"
    primary_key: ClassVar[tuple[str, ...]] = ("name",)

    name: NodeName
    node_type: NodeType
    admission: Admission
    liveness: LivenessName
    intent: IntentName
    takes_replicas: bool
    incarnation: str
    address: str
    gpus: int
    replicas: int
    max_replicas_per_model: int
    vram_total: int
    vram_budget: str | None
    vram_reserved: int
    vram_free: int
    grace_until_ns: int | None
    drain_deadline_ns: int | None
    since_ns: int
    sequence: int
    state: NodeState


class LabelRow(Row, frozen=True):
    """A label in force; what worker and operator each set stays visible beside it (rule N5)."""

    table: ClassVar[str] = "labels"
    primary_key: ClassVar[tuple[str, ...]] = ("node", "key")

    node: NodeName
    key: str
    value: str
    owner: Literal["system", "worker", "operator"]
    worker_value: str | None
    operator_value: str | None


class ReplicaRow(Row, frozen=True):
    table: ClassVar[str] = "replicas"
    primary_key: ClassVar[tuple[str, ...]] = ("id",)

    id: ReplicaId
    node: NodeName
    model: ModelName
    replica_index: int
    phase: PhaseName
    address: str | None
    reason: EndReason | None
    deadline_ns: int | None
    revision: str
    reservation: ReservationId
    since_ns: int
    sequence: int
    state: ReplicaState


class ReservationRow(Row, frozen=True):
    table: ClassVar[str] = "reservations"
    primary_key: ClassVar[tuple[str, ...]] = ("id",)

    id: ReservationId
    node: NodeName
    replica: ReplicaId | None
    holder: str | None
    reason: str | None
    vram: int
    since_ns: int
    until_ns: int | None
    state: ReservationState


class ModelRow(Row, frozen=True):
    table: ClassVar[str] = "models"
    primary_key: ClassVar[tuple[str, ...]] = ("name",)

    name: ModelName
    defined: bool
    revision: str | None
    replicas: int
    serving: int
    unsatisfiable: str | None
    unsatisfiable_until_ns: int | None
    refusal: Literal["unsatisfiable", "exhausted"] | None
    last_failure: str | None
    sequence: int
    state: ModelState


class ScheduleRow(Row, frozen=True):
    """A model's schedule; its breaker is the model's."""

    table: ClassVar[str] = "schedules"
    primary_key: ClassVar[tuple[str, ...]] = ("model",)

    model: ModelName
    mode: Literal["autoscale", "spread_all"]
    min_replicas: int
    max_replicas: int
    node_selector: str
    placement: str
    source: ScheduleSource
    state: ScheduleState


class SettingsRow(Row, frozen=True):
    """The one row of the fleet's settings, defaults included."""

    table: ClassVar[str] = "settings"
    primary_key: ClassVar[tuple[str, ...]] = ("name",)

    name: str
    mass_loss: tuple[str, ...]
    state: Settings


class TokenRow(Row, frozen=True):
    """Who may ask (`client`, with a role) and who may join (`registration`); by digest only."""

    table: ClassVar[str] = "tokens"
    primary_key: ClassVar[tuple[str, ...]] = ("kind", "name")

    kind: Literal["client", "registration"]
    name: str
    role: Role | None
    digest: str
    since_ns: int


ROW_TYPES: Final[Mapping[str, type[Row]]] = {
    kind.table: kind
    for kind in (
        NodeRow,
        LabelRow,
        ReplicaRow,
        ReservationRow,
        ModelRow,
        ScheduleRow,
        SettingsRow,
        TokenRow,
    )
}


def rows_of(fleet: FleetState, entity: Touched) -> Iterator[Row]:  # noqa: C901 - one arm per kind of entity
    """The rows of one entity as it stands in `fleet`; none when it isn't there any more."""
    kind, key = entity
    match kind:
        case "node":
            if (node := fleet.nodes.get(NodeName(key))) is not None:
                yield node_row(node)
                yield from label_rows(node)
        case "replica":
            if (replica := fleet.replicas.get(ReplicaId(key))) is not None:
                yield replica_row(replica)
        case "reservation":
            if (reservation := fleet.reservations.get(ReservationId(key))) is not None:
                yield reservation_row(reservation)
        case "model":
            if (model := fleet.models.get(ModelName(key))) is not None:
                yield from model_rows(model)
        case "settings":
            yield SettingsRow(key, fleet.mass_loss, fleet.settings)
        case "token" | "registration_token":
            tokens = fleet.tokens if kind == "token" else fleet.registration_tokens
            if (token := tokens.get(key)) is not None:
                yield token_row(token)
        case _:
            assert_never(kind)


def entities_of(fleet: FleetState) -> Iterator[Touched]:
    """Every entity of `fleet`."""
    yield SETTINGS
    yield from (("node", name) for name in fleet.nodes)
    yield from (("replica", replica) for replica in fleet.replicas)
    yield from (("reservation", reservation) for reservation in fleet.reservations)
    yield from (("model", name) for name in fleet.models)
    yield from (("token", name) for name in fleet.tokens)
    yield from (("registration_token", name) for name in fleet.registration_tokens)


def node_row(node: NodeState) -> NodeRow:
    """The node with its figures in force."""
    return NodeRow(
        name=node.name,
        node_type=node.node_type,
        admission=node.admission,
        liveness=node.liveness_name,
        intent=node.intent_name,
        takes_replicas=node.takes_replicas,
        incarnation=node.incarnation,
        address=node.facts.address,
        gpus=len(node.facts.gpus),
        replicas=len(node.replicas),
        max_replicas_per_model=node.max_replicas_per_model,
        vram_total=node.vram_total,
        vram_budget=format_budget(node.vram_budget),
        vram_reserved=node.vram_reserved,
        vram_free=node.vram_free,
        grace_until_ns=node.liveness.grace_until_ns if isinstance(node.liveness, Lost) else None,
        drain_deadline_ns=node.intent.deadline_ns if isinstance(node.intent, NodeDraining) else None,
        since_ns=node.since_ns,
        sequence=node.sequence,
        state=node,
    )


def label_rows(node: NodeState) -> Iterator[LabelRow]:
    """The node's labels, each with its owner and what each owner set."""
    reported: Mapping[str, str] = {str(key): value for key, value in node.facts.labels.items()}
    set_by_operator: Mapping[str, str] = {str(key): value for key, value in node.operator_labels.items()}
    for key, value in node.labels.items():
        owner: Literal["system", "worker", "operator"] = "system"
        if set_by_operator.get(key) == value:
            owner = "operator"
        elif reported.get(key) == value:
            owner = "worker"
        yield LabelRow(node.name, key, value, owner, reported.get(key), set_by_operator.get(key))


def replica_row(replica: ReplicaState) -> ReplicaRow:
    """The replica with its phase spread over columns."""
    phase = replica.phase
    return ReplicaRow(
        id=replica.id,
        node=replica.node,
        model=replica.model,
        replica_index=replica.replica_index,
        phase=replica.phase_name,
        address=phase.address if isinstance(phase, Ready | Draining) else None,
        reason=phase.reason if isinstance(phase, Draining) else None,
        deadline_ns=None if isinstance(phase, Ready) else phase.deadline_ns,
        revision=replica.revision,
        reservation=replica.reservation,
        since_ns=replica.since_ns,
        sequence=replica.sequence,
        state=replica,
    )


def reservation_row(reservation: ReservationState) -> ReservationRow:
    """The reservation with its holder spread over columns."""
    holder = reservation.holder
    return ReservationRow(
        id=reservation.id,
        node=reservation.node,
        replica=holder.replica if isinstance(holder, ReplicaHolder) else None,
        holder=holder.holder if isinstance(holder, OperatorHolder) else None,
        reason=holder.reason if isinstance(holder, OperatorHolder) else None,
        vram=sum(reservation.vram.values()),
        since_ns=reservation.since_ns,
        until_ns=reservation.until_ns,
        state=reservation,
    )


def model_rows(model: ModelState) -> Iterator[Row]:
    """The model, and its schedule where it has one."""
    breaker = model.breaker
    yield ModelRow(
        name=model.name,
        defined=model.spec is not None,
        revision=model.revision,
        replicas=len(model.replicas),
        serving=model.serving,
        unsatisfiable=breaker.reason if breaker else None,
        unsatisfiable_until_ns=breaker.until_ns if breaker else None,
        refusal=model.refusal.kind if model.refusal else None,
        last_failure=model.last_failure,
        sequence=model.sequence,
        state=model,
    )
    if model.schedule is not None:
        yield schedule_row(model.name, model.schedule)


def schedule_row(model: ModelName, state: ScheduleState) -> ScheduleRow:
    """The schedule with its mode spread over columns."""
    schedule = state.schedule
    autoscale = schedule.mode if isinstance(schedule.mode, Autoscale) else None
    return ScheduleRow(
        model=model,
        mode="spread_all" if autoscale is None else "autoscale",
        min_replicas=autoscale.min_replicas if autoscale else 0,
        max_replicas=autoscale.max_replicas if autoscale else 0,
        node_selector=format_selector(schedule.node_selector),
        placement=schedule.placement,
        source=state.source,
        state=state,
    )


def token_row(token: Token | RegistrationToken) -> TokenRow:
    """A client's or a worker's token."""
    if isinstance(token, Token):
        return TokenRow("client", token.name, token.role, token.digest, token.since_ns)
    return TokenRow("registration", token.name, None, token.digest, token.since_ns)
