"""Lists by index."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Bring the schema here from the revision before."""
    op.drop_index(op.f("jobs_by_batch"), table_name="jobs")
    op.create_index("jobs_by_batch", "jobs", ["batch_id", "id"], unique=False)
    op.drop_index(op.f("jobs_by_method"), table_name="jobs")
    op.create_index("jobs_by_method", "jobs", ["owner", "method", "id"], unique=False)
    op.create_index("jobs_by_batch_state", "jobs", ["batch_id", "state", "id"], unique=False)
    op.create_index("jobs_by_state", "jobs", ["owner", "state", "id"], unique=False)


def downgrade() -> None:
    """Go back to the revision before."""
    op.drop_index("jobs_by_state", table_name="jobs")
    op.drop_index("jobs_by_batch_state", table_name="jobs")
    op.drop_index("jobs_by_method", table_name="jobs")
    op.create_index(op.f("jobs_by_method"), "jobs", ["method", "id"], unique=False)
    op.drop_index("jobs_by_batch", table_name="jobs")
    op.create_index(op.f("jobs_by_batch"), "jobs", ["batch_id", "state", "id"], unique=False)
