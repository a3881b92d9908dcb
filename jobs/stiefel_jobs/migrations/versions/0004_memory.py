"""The memory that a job is expected to need."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of jobs that exist it is not known."""
    op.add_column("jobs", sa.Column("peak_memory_bytes", sa.BigInteger()))


def downgrade() -> None:
    """Drop it."""
    op.drop_column("jobs", "peak_memory_bytes")
