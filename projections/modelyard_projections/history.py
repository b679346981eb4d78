"""Events as rows of the history: when, who, why, and which entities each concerns. Pure.

Invariant: `body` is the entry byte for byte as the log holds it, so the history is a second copy of the log that
can be checked against it; the columns beside it are what questions filter by (rules H1, H3).
"""

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Final, Literal

import msgspec

from modelyard_events.codec import subject_of, tag_of
from modelyard_events.decision import Decision, DecisionKind
from modelyard_events.envelope import Recorded
from modelyard_events.ids import ModelName, ReplicaId, ReservationId
from modelyard_events.reservation import ReplicaHolder
from modelyard_projections.fleet.picture import FleetState
from modelyard_projections.homes import Homes

MentionKind = Literal["node", "model", "replica", "reservation"]
Mention = tuple[MentionKind, str]

COLUMN_CHARACTERS_MAX: Final = 500
"""Of a text that is indexed: PostgreSQL takes 2,704 bytes in an index entry. The body keeps all of it."""

_ONE: Final[tuple[tuple[str, MentionKind], ...]] = (
    ("node", "node"),
    ("model", "model"),
    ("replica", "replica"),
    ("replaces", "replica"),
    ("reservation", "reservation"),
)
_MANY: Final[tuple[tuple[str, MentionKind], ...]] = (
    ("nodes", "node"),
    ("replicas", "replica"),
    ("waits_for", "replica"),
    ("reservations", "reservation"),
)
"""The fields by which events name entities; a field of such a name means that kind in every event."""


class EventRow(msgspec.Struct, frozen=True):
    """A row of `events`. `tag` is the current one, also where the log holds a retired tag."""

    sequence: int
    time: datetime
    time_ns: int
    event_id: str
    tag: str
    subject: str
    node: str | None
    model: str | None
    actor_kind: str
    actor_name: str
    command: str
    correlation: str
    causation: str | None
    trace: str | None
    occurred_at: datetime | None
    batch_end: bool
    body: msgspec.Raw


class MentionRow(msgspec.Struct, frozen=True):
    """A row of `mentions`: event `sequence` concerns that entity."""

    kind: MentionKind
    name: str
    sequence: int


class DecisionRow(msgspec.Struct, frozen=True):
    """A row of `decisions`; its id is the id of the event that holds it."""

    sequence: int
    id: str
    kind: DecisionKind
    outcome: str
    policy: str
    basis: int
    node: str | None
    model: str | None
    body: Decision


class History(msgspec.Struct):
    """The rows of some events."""

    events: list[EventRow] = []
    mentions: list[MentionRow] = []
    decisions: list[DecisionRow] = []

    def add(self, recorded: Recorded, body: bytes, before: FleetState) -> None:
        """Add the rows of one event; `before` is the fleet that the event is about to change."""
        concerned = mentions(recorded, before)
        nodes = [name for kind, name in concerned if kind == "node"]
        models = [name for kind, name in concerned if kind == "model"]
        node = nodes[0] if len(nodes) == 1 else None
        model = models[0] if len(models) == 1 else None
        self.events.append(_event_row(recorded, body, node=node, model=model))
        self.mentions.extend(MentionRow(kind, name, recorded.sequence) for kind, name in concerned)
        decision: Decision | None = getattr(recorded.event, "decision", None)
        if decision is not None:
            self.decisions.append(_decision_row(recorded, decision, node=node, model=model))

    def after(self, sequence: int) -> "History":
        """The rows of the events after `sequence`."""
        return History(
            [row for row in self.events if row.sequence > sequence],
            [row for row in self.mentions if row.sequence > sequence],
            [row for row in self.decisions if row.sequence > sequence],
        )


def column_text(text: str) -> str:
    """`text` as its column holds it: bounded, and without NUL, which PostgreSQL's text can't hold."""
    return text[:COLUMN_CHARACTERS_MAX].replace("\0", "\N{REPLACEMENT CHARACTER}")


def mentions(recorded: Recorded, before: FleetState) -> list[Mention]:
    """The entities that an event concerns, each once: those it names, and the models behind them."""

    def holder_of(reservation: ReservationId) -> ReplicaId | None:
        found = before.reservations.get(reservation)
        return found.holder.replica if found is not None and isinstance(found.holder, ReplicaHolder) else None

    def model_of(replica: ReplicaId) -> ModelName | None:
        found = before.replicas.get(replica)
        return None if found is None else found.model

    return _mentions(recorded, holder_of, model_of)


def mentions_from(recorded: Recorded, homes: Homes) -> list[Mention]:
    """The same for an event that was folded long ago; `homes` has folded it too, or is about to."""
    holder_of = partial(homes.holder_of, before=recorded.sequence)
    model_of = partial(homes.model_of, before=recorded.sequence)
    return _mentions(recorded, holder_of, model_of)


def _mentions(
    recorded: Recorded,
    holder_of: Callable[[ReservationId], ReplicaId | None],
    model_of: Callable[[ReplicaId], ModelName | None],
) -> list[Mention]:
    named = dict.fromkeys(_named(recorded))
    for kind, name in list(named):
        if kind == "reservation" and (holder := holder_of(ReservationId(name))) is not None:
            named["replica", holder] = None
    for kind, name in list(named):
        if kind == "replica" and (model := model_of(ReplicaId(name))) is not None:
            named["model", model] = None
    return list(named)


def _named(recorded: Recorded) -> Iterator[Mention]:
    event = recorded.event
    for field, kind in _ONE:
        if (name := getattr(event, field, None)) is not None:
            yield kind, name
    for field, kind in _MANY:
        for name in getattr(event, field, ()):
            yield kind, name
    holder = getattr(event, "holder", None)
    if isinstance(holder, ReplicaHolder):
        yield "replica", holder.replica


def _event_row(recorded: Recorded, body: bytes, *, node: str | None, model: str | None) -> EventRow:
    envelope = recorded.envelope
    return EventRow(
        sequence=recorded.sequence,
        time=recorded.time,
        time_ns=recorded.time_ns,
        event_id=recorded.event_id,
        tag=tag_of(recorded.event),
        subject=subject_of(recorded.event),
        node=node,
        model=model,
        actor_kind=envelope.actor.kind,
        actor_name=envelope.actor.name,
        command=envelope.command,
        correlation=envelope.correlation,
        causation=envelope.causation,
        trace=envelope.trace,
        occurred_at=envelope.occurred_at,
        batch_end=recorded.batch_end,
        body=msgspec.Raw(body),
    )


def _decision_row(recorded: Recorded, decision: Decision, *, node: str | None, model: str | None) -> DecisionRow:
    return DecisionRow(
        sequence=recorded.sequence,
        id=recorded.event_id,
        kind=decision.kind,
        outcome=decision.outcome,
        policy=decision.policy,
        basis=decision.basis,
        node=node,
        model=model,
        body=decision,
    )
