"""The read model's schema, step by step.

Invariant: the steps build exactly what `tables` says; a step that was released is never edited.
"""

from importlib.resources import files
from typing import Final

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

_LOCK: Final = 0x6D6F64656C79
"""Of the advisory lock under which schemas change: `modely` in ASCII, no other program's by chance."""


def migrate(connection: Connection) -> None:
    """Bring the schema up to date, one process at a time; the caller commits."""
    connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    config = Config()
    config.set_main_option("script_location", str(files(__name__)))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
