"""Reading the read model: history by page and filter, decisions, entities, and the canonical hash of what is there.

Invariant: everything is bounded by a page; nothing here writes.
"""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import Select, Table, Text, cast, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from modelyard_events.codec import TAGS
from modelyard_projections import tables
from modelyard_projections.checkpoint import FLEET_PROJECTION
from modelyard_projections.hashing import hash_of_rows
from modelyard_projections.history import MentionKind, column_text
from modelyard_projections.rows import ROW_TYPES, Row

PAGE_MAX: Final = 1_000
"""Events in one answer: at 64 KiB an event the worst page is one no client should be sent more of."""

R = TypeVar("R", bound=Row)


class EventFilter(msgspec.Struct, frozen=True):
    """Which events: all conditions hold; None asks nothing.

    `type` is a tag, or the front of one (`replica.placed`, `replica`). `from_ns` is inclusive, `to_ns` exclusive.
    """

    from_ns: int | None = None
    to_ns: int | None = None
    node: str | None = None
    model: str | None = None
    replica: str | None = None
    reservation: str | None = None
    type: str | None = None
    actor: str | None = None
    correlation: str | None = None


class EventRecord(msgspec.Struct, frozen=True):
    """An event of the history. `body` is its entry as the log holds it: `{"event": …, "envelope": …}`."""

    sequence: int
    time: datetime
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
    body: msgspec.Raw


class EventPage(msgspec.Struct, frozen=True):
    """`next` is the cursor of the next page (its `after`), None at the end of what there is now."""

    items: list[EventRecord]
    next: int | None


class DecisionRecord(msgspec.Struct, frozen=True):
    """A decision with the event that holds it."""

    id: str
    sequence: int
    kind: str
    outcome: str
    policy: str
    basis: int
    node: str | None
    model: str | None
    body: msgspec.Raw


class ProjectionRecord(msgspec.Struct, frozen=True):
    """How far the read model has come, and why it stands still if it does."""

    log_id: str
    sequence: int
    state_hash: str
    status: str
    error: dict[str, Any] | None
    updated: datetime


async def event_page(
    connection: AsyncConnection, wanted: EventFilter | None = None, *, after: int = 0, limit: int = PAGE_MAX
) -> EventPage:
    """Events after sequence `after` in log order, at most `limit` of them."""
    limit = max(1, min(limit, PAGE_MAX))
    query = _filtered(wanted or EventFilter()).where(tables.events.c.sequence > after)
    found = (await connection.execute(query.order_by(tables.events.c.sequence).limit(limit + 1))).all()
    items = [_event(tuple(row)) for row in found[:limit]]
    return EventPage(items, items[-1].sequence if len(found) > limit else None)


async def event_by_sequence(connection: AsyncConnection, sequence: int) -> EventRecord | None:
    """One event, None where there is none (yet)."""
    found = (await connection.execute(_EVENTS.where(tables.events.c.sequence == sequence))).one_or_none()
    return None if found is None else _event(tuple(found))


async def event_by_id(connection: AsyncConnection, event_id: str) -> EventRecord | None:
    """The event with that id: what a causation points to."""
    query = _EVENTS.where(tables.events.c.event_id == event_id).order_by(tables.events.c.sequence).limit(1)
    found = (await connection.execute(query)).one_or_none()
    return None if found is None else _event(tuple(found))


async def effects_of(connection: AsyncConnection, event_id: str, *, limit: int = PAGE_MAX) -> list[EventRecord]:
    """The events that name `event_id` as their causation, in log order."""
    query = _EVENTS.where(tables.events.c.causation == event_id).order_by(tables.events.c.sequence)
    found = (await connection.execute(query.limit(max(1, min(limit, PAGE_MAX))))).all()
    return [_event(tuple(row)) for row in found]


async def decision(connection: AsyncConnection, decision_id: str) -> DecisionRecord | None:
    """One decision by the id of the event that holds it."""
    query = _DECISIONS.where(tables.decisions.c.id == decision_id).order_by(tables.decisions.c.sequence).limit(1)
    found = (await connection.execute(query)).one_or_none()
    return None if found is None else _decision(tuple(found))


async def decisions_about(
    connection: AsyncConnection, model: str, *, node: str | None = None, until: int | None = None, limit: int = PAGE_MAX
) -> list[DecisionRecord]:
    """The newest decisions about `model`, newest first; of those only the ones for `node`, and up to `until`."""
    columns = tables.decisions.c
    query = _DECISIONS.where(columns.model == column_text(model))
    if node is not None:
        query = query.where(columns.node == column_text(node))
    if until is not None:
        query = query.where(columns.sequence <= until)
    found = await connection.execute(query.order_by(columns.sequence.desc()).limit(max(1, min(limit, PAGE_MAX))))
    return [_decision(tuple(row)) for row in found.all()]


async def projection(connection: AsyncConnection) -> ProjectionRecord | None:
    """Where the read model stands, None in a database that nothing was projected into."""
    columns = [tables.projection.c[name] for name in ProjectionRecord.__struct_fields__]
    query = select(*columns).where(tables.projection.c.name == FLEET_PROJECTION)
    found = (await connection.execute(query)).one_or_none()
    return None if found is None else ProjectionRecord(*found)


async def entities(connection: AsyncConnection, kind: type[R]) -> AsyncIterator[R]:
    """Every row of one table, read back from its columns."""
    table = tables.metadata.tables[kind.table]
    whole = func.to_jsonb(table.table_valued())
    decoder = msgspec.json.Decoder(kind)
    async for (body,) in await connection.stream(select(cast(whole, Text))):
        yield decoder.decode(body)


async def rows_hash(connection: AsyncConnection) -> str:
    """The canonical hash of the entities' rows, from nothing but their columns.

    Call it in a transaction of isolation level REPEATABLE READ together with `projection`, so that both are of one
    moment.
    """
    rows: list[Row] = []
    for kind in ROW_TYPES.values():
        rows.extend([row async for row in entities(connection, kind)])
    return hash_of_rows(rows)


def _filtered(wanted: EventFilter) -> Select[Any]:
    query, columns = _EVENTS, tables.events.c
    if wanted.from_ns is not None:
        query = query.where(columns.time_ns >= wanted.from_ns)
    if wanted.to_ns is not None:
        query = query.where(columns.time_ns < wanted.to_ns)
    if wanted.actor is not None:
        query = query.where(columns.actor_name == column_text(wanted.actor))
    if wanted.correlation is not None:
        query = query.where(columns.correlation == column_text(wanted.correlation))
    if wanted.type is not None:
        query = query.where(columns.tag.in_(_tags(wanted.type)))
    mentioned: Sequence[tuple[MentionKind, str | None]] = (
        ("node", wanted.node),
        ("model", wanted.model),
        ("replica", wanted.replica),
        ("reservation", wanted.reservation),
    )
    for kind, name in mentioned:
        if name is not None:
            query = _mentioning(query, kind, name)
    return query


def _mentioning(query: Select[Any], kind: MentionKind, name: str) -> Select[Any]:
    one = tables.mentions.alias(f"mentioned_{kind}")
    same = (one.c.sequence == tables.events.c.sequence) & (one.c.kind == kind) & (one.c.name == column_text(name))
    return query.join(one, same)


def _tags(front: str) -> list[str]:
    return [tag for tag in TAGS if tag == front or tag.startswith(front + ".")]


def _columns(table: Table, record: type[msgspec.Struct]) -> Select[Any]:
    """The fields of `record`; JSON as the text it was written as."""
    return select(
        *[cast(table.c[name], Text) if name == "body" else table.c[name] for name in record.__struct_fields__]
    )


_EVENTS: Final = _columns(tables.events, EventRecord)


def _event(values: tuple[Any, ...]) -> EventRecord:
    *columns, body = values
    return EventRecord(*(*columns, msgspec.Raw(body.encode())))


_DECISIONS: Final = _columns(tables.decisions, DecisionRecord)


def _decision(values: tuple[Any, ...]) -> DecisionRecord:
    *columns, body = values
    return DecisionRecord(*(*columns, msgspec.Raw(body.encode())))
