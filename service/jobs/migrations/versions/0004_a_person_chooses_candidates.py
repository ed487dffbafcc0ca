"""A person chooses candidates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Bring the schema here from the revision before."""
    op.add_column("artifacts", sa.Column("candidate", sa.Integer(), nullable=True))
    op.add_column("jobs", sa.Column("choice", sa.JSON(none_as_null=True), nullable=True))


def downgrade() -> None:
    """Go back to the revision before."""
    op.drop_column("jobs", "choice")
    op.drop_column("artifacts", "candidate")
