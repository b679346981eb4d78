"""The tables of the read model and of the history, as SQLAlchemy knows them.

Invariant: the columns are the fields of the rows (`rows`, `history`), and the migrations build exactly this; tests
hold all three against each other. Times `*_ns` are nanoseconds since 1970, sizes bytes.
"""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSON, JSONB
from sqlalchemy.types import TypeEngine

metadata: Final = MetaData()


def _key(name: str) -> Column[str]:
    return Column(name, Text, primary_key=True)


def _column(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]] = Text) -> Column[Any]:
    return Column(name, kind, nullable=False)


def _optional(name: str, kind: TypeEngine[Any] | type[TypeEngine[Any]] = Text) -> Column[Any]:
    return Column(name, kind)


nodes: Final = Table(
    "nodes",
    metadata,
    _key("name"),
    _column("node_type"),
    _column("admission"),
    _column("liveness"),
    _column("intent"),
    _column("takes_replicas", Boolean),
    _column("incarnation"),
    _column("address"),
    _column("gpus", Integer),
    _column("replicas", Integer),
    _column("max_replicas_per_model", Integer),
    _column("vram_total", BigInteger),
    _optional("vram_budget"),
    _column("vram_reserved", BigInteger),
    _column("vram_free", BigInteger),
    _optional("grace_until_ns", BigInteger),
    _optional("drain_deadline_ns", BigInteger),
    _column("since_ns", BigInteger),
    _column("sequence", BigInteger),
    _column("state", JSONB),
)

labels: Final = Table(
    "labels",
    metadata,
    _key("node"),
    _key("key"),
    _column("value"),
    _column("owner"),
    _optional("worker_value"),
    _optional("operator_value"),
    Index("labels_by_value", "key", "value"),
)

replicas: Final = Table(
    "replicas",
    metadata,
    _key("id"),
    _column("node"),
    _column("model"),
    _column("replica_index", Integer),
    _column("phase"),
    _optional("address"),
    _optional("reason"),
    _optional("deadline_ns", BigInteger),
    _column("revision"),
    _column("reservation"),
    _column("since_ns", BigInteger),
    _column("sequence", BigInteger),
    _column("state", JSONB),
    Index("replicas_by_node", "node"),
    Index("replicas_by_model", "model"),
)

reservations: Final = Table(
    "reservations",
    metadata,
    _key("id"),
    _column("node"),
    _optional("replica"),
    _optional("holder"),
    _optional("reason"),
    _column("vram", BigInteger),
    _column("since_ns", BigInteger),
    _optional("until_ns", BigInteger),
    _column("state", JSONB),
    Index("reservations_by_node", "node"),
)

models: Final = Table(
    "models",
    metadata,
    _key("name"),
    _column("defined", Boolean),
    _optional("revision"),
    _column("replicas", Integer),
    _column("serving", Integer),
    _optional("unsatisfiable"),
    _optional("unsatisfiable_until_ns", BigInteger),
    _optional("refusal"),
    _optional("last_failure"),
    _column("sequence", BigInteger),
    _column("state", JSONB),
)

schedules: Final = Table(
    "schedules",
    metadata,
    _key("model"),
    _column("mode"),
    _column("min_replicas", Integer),
    _column("max_replicas", Integer),
    _column("node_selector"),
    _column("placement"),
    _column("source"),
    _column("state", JSONB),
)

settings: Final = Table(
    "settings",
    metadata,
    _key("name"),
    _column("mass_loss", JSONB),
    _column("state", JSONB),
)

tokens: Final = Table(
    "tokens",
    metadata,
    _key("kind"),
    _key("name"),
    _optional("role"),
    _column("digest"),
    _column("since_ns", BigInteger),
)

events: Final = Table(
    "events",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    _column("time", DateTime(timezone=True)),
    _column("time_ns", BigInteger),
    _column("event_id"),
    _column("tag"),
    _column("subject"),
    _optional("node"),
    _optional("model"),
    _column("actor_kind"),
    _column("actor_name"),
    _column("command"),
    _column("correlation"),
    _optional("causation"),
    _optional("trace"),
    _optional("occurred_at", DateTime(timezone=True)),
    _column("batch_end", Boolean),
    # Not jsonb: that would neither keep the log's bytes nor take a NUL that a dying process printed.
    _column("body", JSON),
    Index("events_by_time", "time_ns"),
    # Not unique: what the log holds is history, whatever it holds.
    Index("events_by_id", "event_id"),
    Index("events_by_tag", "tag", "sequence"),
    Index("events_by_actor", "actor_name", "sequence"),
    Index("events_by_correlation", "correlation", "sequence"),
    Index("events_by_causation", "causation", "sequence"),
)

mentions: Final = Table(
    "mentions",
    metadata,
    # In this order, the history of an entity is one range of the index, already sorted.
    _key("kind"),
    _key("name"),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
)

decisions: Final = Table(
    "decisions",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    _column("id"),
    _column("kind"),
    _column("outcome"),
    _column("policy"),
    _column("basis", BigInteger),
    _optional("node"),
    _optional("model"),
    _column("body", JSON),
    Index("decisions_by_id", "id"),
    Index("decisions_by_model", "model", "sequence"),
)

projection: Final = Table(
    "projection",
    metadata,
    _key("name"),
    _column("log_id"),
    _column("sequence", BigInteger),
    _column("state_hash"),
    _column("status"),
    _optional("error", JSONB),
    _column("updated", DateTime(timezone=True)),
)

ENTITY_TABLES: Final = (nodes, labels, replicas, reservations, models, schedules, settings, tokens)
HISTORY_TABLES: Final = (events, mentions, decisions)
