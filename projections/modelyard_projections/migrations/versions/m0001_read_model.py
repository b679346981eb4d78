"""The read model and the history, as first released.

Invariant: never edited; what changes gets a step of its own.
"""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision: str = "0001"
down_revision: str | None = None
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    """Make all tables."""
    _nodes()
    _labels()
    _replicas()
    _reservations()
    _models()
    _schedules()
    _settings()
    _tokens()
    _events()
    _mentions()
    _decisions()
    _projection()


def _nodes() -> None:
    op.create_table(
        "nodes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("node_type", sa.Text, nullable=False),
        sa.Column("admission", sa.Text, nullable=False),
        sa.Column("liveness", sa.Text, nullable=False),
        sa.Column("intent", sa.Text, nullable=False),
        sa.Column("takes_replicas", sa.Boolean, nullable=False),
        sa.Column("incarnation", sa.Text, nullable=False),
        sa.Column("address", sa.Text, nullable=False),
        sa.Column("gpus", sa.Integer, nullable=False),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("max_replicas_per_model", sa.Integer, nullable=False),
        sa.Column("vram_total", sa.BigInteger, nullable=False),
        sa.Column("vram_budget", sa.Text),
        sa.Column("vram_reserved", sa.BigInteger, nullable=False),
        sa.Column("vram_free", sa.BigInteger, nullable=False),
        sa.Column("grace_until_ns", sa.BigInteger),
        sa.Column("drain_deadline_ns", sa.BigInteger),
        sa.Column("since_ns", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("state", postgresql.JSONB, nullable=False),
    )


def _labels() -> None:
    op.create_table(
        "labels",
        sa.Column("node", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("worker_value", sa.Text),
        sa.Column("operator_value", sa.Text),
    )
    op.create_index("labels_by_value", "labels", ["key", "value"])


def _replicas() -> None:
    op.create_table(
        "replicas",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("replica_index", sa.Integer, nullable=False),
        sa.Column("phase", sa.Text, nullable=False),
        sa.Column("address", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("deadline_ns", sa.BigInteger),
        sa.Column("revision", sa.Text, nullable=False),
        sa.Column("reservation", sa.Text, nullable=False),
        sa.Column("since_ns", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("state", postgresql.JSONB, nullable=False),
    )
    op.create_index("replicas_by_node", "replicas", ["node"])
    op.create_index("replicas_by_model", "replicas", ["model"])


def _reservations() -> None:
    op.create_table(
        "reservations",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("node", sa.Text, nullable=False),
        sa.Column("replica", sa.Text),
        sa.Column("holder", sa.Text),
        sa.Column("reason", sa.Text),
        sa.Column("vram", sa.BigInteger, nullable=False),
        sa.Column("since_ns", sa.BigInteger, nullable=False),
        sa.Column("until_ns", sa.BigInteger),
        sa.Column("state", postgresql.JSONB, nullable=False),
    )
    op.create_index("reservations_by_node", "reservations", ["node"])


def _models() -> None:
    op.create_table(
        "models",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("defined", sa.Boolean, nullable=False),
        sa.Column("revision", sa.Text),
        sa.Column("replicas", sa.Integer, nullable=False),
        sa.Column("serving", sa.Integer, nullable=False),
        sa.Column("unsatisfiable", sa.Text),
        sa.Column("unsatisfiable_until_ns", sa.BigInteger),
        sa.Column("refusal", sa.Text),
        sa.Column("last_failure", sa.Text),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("state", postgresql.JSONB, nullable=False),
    )


def _schedules() -> None:
    op.create_table(
        "schedules",
        sa.Column("model", sa.Text, primary_key=True),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("min_replicas", sa.Integer, nullable=False),
        sa.Column("max_replicas", sa.Integer, nullable=False),
        sa.Column("node_selector", sa.Text, nullable=False),
        sa.Column("placement", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("state", postgresql.JSONB, nullable=False),
    )


def _settings() -> None:
    op.create_table(
        "settings",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("mass_loss", postgresql.JSONB, nullable=False),
        sa.Column("state", postgresql.JSONB, nullable=False),
    )


def _tokens() -> None:
    op.create_table(
        "tokens",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("role", sa.Text),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("since_ns", sa.BigInteger, nullable=False),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("time_ns", sa.BigInteger, nullable=False),
        sa.Column("event_id", sa.Text, nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("node", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("actor_kind", sa.Text, nullable=False),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("command", sa.Text, nullable=False),
        sa.Column("correlation", sa.Text, nullable=False),
        sa.Column("causation", sa.Text),
        sa.Column("trace", sa.Text),
        sa.Column("occurred_at", sa.DateTime(timezone=True)),
        sa.Column("batch_end", sa.Boolean, nullable=False),
        sa.Column("body", postgresql.JSON, nullable=False),
    )
    op.create_index("events_by_time", "events", ["time_ns"])
    op.create_index("events_by_id", "events", ["event_id"])
    op.create_index("events_by_tag", "events", ["tag", "sequence"])
    op.create_index("events_by_actor", "events", ["actor_name", "sequence"])
    op.create_index("events_by_correlation", "events", ["correlation", "sequence"])
    op.create_index("events_by_causation", "events", ["causation", "sequence"])


def _mentions() -> None:
    op.create_table(
        "mentions",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    )


def _decisions() -> None:
    op.create_table(
        "decisions",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("policy", sa.Text, nullable=False),
        sa.Column("basis", sa.BigInteger, nullable=False),
        sa.Column("node", sa.Text),
        sa.Column("model", sa.Text),
        sa.Column("body", postgresql.JSON, nullable=False),
    )
    op.create_index("decisions_by_id", "decisions", ["id"])
    op.create_index("decisions_by_model", "decisions", ["model", "sequence"])


def _projection() -> None:
    op.create_table(
        "projection",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("log_id", sa.Text, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("state_hash", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("error", postgresql.JSONB),
        sa.Column("updated", sa.DateTime(timezone=True), nullable=False),
    )
