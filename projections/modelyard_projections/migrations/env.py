"""Alembic's entry: runs the steps on the connection that `migrate` holds, in its transaction.

Invariant: there is no other way in, so no step runs without the lock.
"""

from alembic import context

from modelyard_projections.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
