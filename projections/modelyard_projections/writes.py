"""Writing the read model: the rows of some events and the checkpoint after them, in the caller's transaction.

Invariant: whoever writes has moved the checkpoint from exactly where its own work begins, first, in the same
transaction; so of two projectors one waits for the other's commit, finds the checkpoint moved, and writes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from psycopg import AsyncConnection as PsycopgConnection
from psycopg import sql
from sqlalchemy import (
    Delete,
    Select,
    Table,
    Text,
    bindparam,
    cast,
    column,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import JSON, Insert
from sqlalchemy.dialects.postgresql import insert as upserting
from sqlalchemy.ext.asyncio import AsyncConnection

from modelyard_projections import tables
from modelyard_projections.checkpoint import FLEET_PROJECTION, Checkpoint
from modelyard_projections.hashing import Changes
from modelyard_projections.history import DecisionRow, EventRow, History, MentionRow, column_text
from modelyard_projections.rows import ROW_TYPES, Key


async def read_checkpoint(connection: AsyncConnection) -> Checkpoint | None:
    """Where the rows stand, None in a database that nothing was projected into."""
    found = await connection.execute(
        select(tables.projection.c.log_id, tables.projection.c.sequence, tables.projection.c.state_hash).where(
            tables.projection.c.name == FLEET_PROJECTION
        )
    )
    row = found.one_or_none()
    return None if row is None else Checkpoint(row.log_id, row.sequence, row.state_hash)


async def begin_checkpoint(connection: AsyncConnection, checkpoint: Checkpoint, changes: Changes) -> bool:
    """Make the first checkpoint with the rows an empty fleet has; False when another projector already did."""
    made = await connection.execute(
        upserting(tables.projection)
        .values(name=FLEET_PROJECTION, status="running", updated=func.now(), **msgspec.structs.asdict(checkpoint))
        .on_conflict_do_nothing()
        .returning(tables.projection.c.name)
    )
    if made.one_or_none() is None:
        return False
    await write_changes(connection, changes)
    return True


async def advance(connection: AsyncConnection, *, before: Checkpoint, after: Checkpoint) -> bool:
    """Move the checkpoint; False when it isn't at `before` any more. Call it first, and write nothing on False."""
    moved = await connection.execute(
        update(tables.projection)
        .where(
            tables.projection.c.name == FLEET_PROJECTION,
            tables.projection.c.log_id == before.log_id,
            tables.projection.c.sequence == before.sequence,
            tables.projection.c.state_hash == before.state_hash,
        )
        .values(
            sequence=after.sequence,
            state_hash=after.state_hash,
            status="running",
            error=None,
            updated=func.now(),
        )
    )
    return moved.rowcount == 1


async def note_stop(connection: AsyncConnection, *, sequence: int, problem: str) -> None:
    """Say in the read model itself that it stands still, where, and why."""
    await connection.execute(
        update(tables.projection)
        .where(tables.projection.c.name == FLEET_PROJECTION)
        .values(status="stopped", error={"sequence": sequence, "problem": problem}, updated=func.now())
    )


async def write_changes(connection: AsyncConnection, changes: Changes) -> None:
    """Bring the entities' rows up to date."""
    for table, keys in changes.vanished.items():
        gone = msgspec.json.encode([_keyed(table, key) for key in keys])
        await connection.execute(_DELETE[table], {"rows": gone.decode()})
    for table, bodies in changes.changed.items():
        await connection.execute(_UPSERT[table], {"rows": "[" + b",".join(bodies).decode() + "]"})


async def write_history(connection: AsyncConnection, history: History) -> None:
    """Add the rows of new events."""
    await _copy(connection, tables.events, map(_event_values, history.events))
    await _copy(connection, tables.mentions, map(_mention_values, history.mentions))
    await _copy(connection, tables.decisions, map(_decision_values, history.decisions))


async def rewrite_entities(connection: AsyncConnection, rows: Changes) -> None:
    """Replace the rows of all entities; readers see the old ones until the transaction ends."""
    for table in tables.ENTITY_TABLES:
        await connection.execute(delete(table))
    await write_changes(connection, rows)


def _recordset(table: Table, names: Sequence[str]) -> Select[Any]:
    """What the JSON in the parameter `rows` holds, as rows with the columns `names` of `table`."""
    source = (
        func.json_to_recordset(cast(bindparam("rows", type_=Text), JSON))
        .table_valued(*[column(name, table.c[name].type) for name in names])
        .render_derived(with_types=True)
    )
    return select(*[source.c[name] for name in names])


def _upsert(table: Table) -> Insert:
    names = table.c.keys()
    key = [one.name for one in table.primary_key]
    statement = upserting(table).from_select(names, _recordset(table, names))
    changed = {name: statement.excluded[name] for name in names if name not in key}
    return statement.on_conflict_do_update(index_elements=key, set_=changed)


def _delete(table: Table) -> Delete:
    names = [one.name for one in table.primary_key]
    return delete(table).where(tuple_(*table.primary_key).in_(_recordset(table, names)))


_UPSERT: Final[Mapping[str, Insert]] = {table.name: _upsert(table) for table in tables.ENTITY_TABLES}
_DELETE: Final[Mapping[str, Delete]] = {table.name: _delete(table) for table in tables.ENTITY_TABLES}


def _keyed(table: str, key: Key) -> dict[str, str]:
    return dict(zip(ROW_TYPES[table].primary_key, key, strict=True))


async def _copy(connection: AsyncConnection, table: Table, values: Iterable[Sequence[object]]) -> None:
    pooled = await connection.get_raw_connection()
    driver = pooled.driver_connection
    if not isinstance(driver, PsycopgConnection):
        raise TypeError(f"the history is copied by psycopg, not by {type(driver).__name__}")
    names = sql.SQL(", ").join(map(sql.Identifier, table.c.keys()))
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table.name), names)
    async with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in values:
            await copy.write_row(row)


def _event_values(row: EventRow) -> Sequence[object]:
    *columns, body = msgspec.structs.astuple(row)
    return (*map(_column_value, columns), bytes(body).decode())


def _decision_values(row: DecisionRow) -> Sequence[object]:
    *columns, body = msgspec.structs.astuple(row)
    return (*map(_column_value, columns), msgspec.json.encode(body).decode())


def _mention_values(row: MentionRow) -> Sequence[object]:
    return (row.kind, column_text(row.name), row.sequence)


def _column_value(value: object) -> object:
    return column_text(value) if isinstance(value, str) else value
