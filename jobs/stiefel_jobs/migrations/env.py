"""Run migrations inside the transaction that ``stiefel_jobs.database.migrate`` opened."""

from __future__ import annotations

from alembic import context

from stiefel_jobs.tables import metadata

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=metadata,
    render_as_batch=connection.dialect.name == "sqlite",
    transactional_ddl=True,
    compare_type=True,
)
context.run_migrations()
