"""What alembic runs: the migrations, on the connection and in the transaction that its caller has opened."""

from __future__ import annotations

from alembic import context

from service.jobs import tables

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=tables.metadata,
    compare_server_default=True,
)
context.run_migrations()
