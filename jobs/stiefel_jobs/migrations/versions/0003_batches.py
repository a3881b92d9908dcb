"""Batches, and the batch of a job."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Create the table and add the columns."""
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("tenant", sa.String(64), nullable=False),
        sa.Column("name", sa.String(255)),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("axes", JSON, nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_batches"),
    )
    op.create_index("ix_batches_tenant_id", "batches", ["tenant", "id"])
    op.add_column("jobs", sa.Column("batch_id", sa.String(64)))
    op.add_column("jobs", sa.Column("custom_id", sa.String(255)))
    op.create_index("ix_jobs_batch_id_id", "jobs", ["batch_id", "id"])


def downgrade() -> None:
    """Drop the columns and the table; the jobs stay."""
    op.drop_index("ix_jobs_batch_id_id", "jobs")
    op.drop_column("jobs", "custom_id")
    op.drop_column("jobs", "batch_id")
    op.drop_table("batches")
