"""Every table, as the newest migration leaves it. Times are seconds since 1970, database clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import TypeEngine

Json: TypeEngine[Any] = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
# SQLite counts up by itself only on a column of the very type INTEGER.
Serial: TypeEngine[int] = BigInteger().with_variant(Integer(), "sqlite")
Id = String(64)
Name = String(255)
Digest = String(64)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenants = Table(
    "tenants",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Name, nullable=False),
    Column("limits", Json, nullable=False),
    Column("created_at", Double, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Id, ForeignKey("tenants.id"), nullable=False, index=True),
    Column("name", Name, nullable=False),
    Column("prefix", String(32), nullable=False, unique=True),
    Column("sha256", Digest, nullable=False),
    Column("scopes", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double),
    Column("last_used_at", Double),
    Column("revoked_at", Double),
)

blobs = Table(
    "blobs",  # bytes in the store, per tenant: no tenant can tell what another one holds
    metadata,
    Column("tenant", Id, primary_key=True),
    Column("sha256", Digest, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("touched_at", Double, nullable=False, index=True),  # garbage waits from the last use
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Id, nullable=False),
    Column("kind", Name, nullable=False),
    Column("name", Text, nullable=False),
    Column("sha256", Digest, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("job_id", Id, index=True),  # the job that made it; none for an upload
    Column("meta", Json, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, index=True),
    ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"]),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "sha256"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Id, nullable=False, index=True),
    Column("filename", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", Digest),  # as promised by the client, if it did
    Column("part_size", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),  # open, completed, aborted
    Column("staging", Text, nullable=False),  # key prefix of the parts in the store
    Column("meta", Json, nullable=False),
    Column("artifact_id", Id),
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Id, nullable=False),
    Column("method", Name, nullable=False),
    Column("spec", Json, nullable=False),
    Column("inputs", Json, nullable=False),  # staged file name -> artifact id
    Column("labels", Json, nullable=False),
    Column("queue", Name, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("peak_memory_bytes", BigInteger),  # as estimated; null where nobody can tell
    Column("max_attempts", Integer, nullable=False),
    Column("output_ttl_s", Double),
    Column("traceparent", Text),
    Column("state", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),  # grows with every visible change
    Column("last_seq", BigInteger, nullable=False),  # the newest event's number
    Column("fence", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),  # attempts begun, drains and pauses included
    Column("failures", Integer, nullable=False),  # of the present budget of max_attempts
    Column("resource_deaths", Integer, nullable=False),
    Column("worker", Name),
    Column("lease_until", Double),
    Column("not_before", Double, nullable=False),
    Column("deadline_s", Double),
    Column("deadline_at", Double),
    Column("progress", Json),
    Column("progress_at", Double),
    Column("base_done", Double),  # where and when this attempt's rate of progress is counted from
    Column("base_at", Double),
    Column("result", Json),
    Column("error", Json),
    Column("blame", String(16)),
    Column("reason", Text),
    Column("created_at", Double, nullable=False),
    Column("queued_at", Double, nullable=False),
    Column("started_at", Double),
    Column("finished_at", Double),
    Column("batch_id", Id),  # in the order of their ids, the jobs of a batch are its cells
    Column("custom_id", Name),
    Index(None, "tenant", "id"),
    Index(None, "tenant", "state", "id"),
    Index(None, "state", "queue", "id"),
    Index(None, "state", "lease_until"),
    Index(None, "batch_id", "id"),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Id, primary_key=True),
    Column("tenant", Id, nullable=False),
    Column("name", Name),
    Column("labels", Json, nullable=False),
    Column("axes", Json, nullable=False),  # [{path, values}]: a JSON object may lose its order
    Column("size", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Index(None, "tenant", "id"),
)

job_labels = Table(
    "job_labels",  # the labels again, for finding jobs by them
    metadata,
    Column("tenant", Id, primary_key=True),
    Column("key", Name, primary_key=True),
    Column("value", Name, primary_key=True),
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Index(None, "job_id"),
)

job_inputs = Table(
    "job_inputs",  # the inputs again: an artifact in use by a live job must not be collected
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Name, primary_key=True),
    Column("artifact_id", Id, nullable=False, index=True),
)

attempts = Table(
    "attempts",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("fence", BigInteger, nullable=False),
    Column("worker", Name, nullable=False),
    Column("resumed_from", BigInteger),  # step of the checkpoint
    Column("started_at", Double, nullable=False),
    Column("ended_at", Double),
    Column("reason", Text),
    Column("blame", String(16)),
    Column("error", Json),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("step", BigInteger, nullable=False),
    Column("fence", BigInteger, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("files", Json, nullable=False),  # [{path, size, segments: [{sha256, size}]}]
    Column("created_at", Double, nullable=False),
)

checkpoint_segments = Table(
    "checkpoint_segments",  # which blobs the kept checkpoints need
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("sha256", Digest, primary_key=True),
    Column("tenant", Id, nullable=False),
    ForeignKeyConstraint(["tenant", "sha256"], ["blobs.tenant", "blobs.sha256"]),
    Index(None, "tenant", "sha256"),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Double, nullable=False),
    Column("type", Name, nullable=False),
    Column("data", Json, nullable=False),
)

metrics = Table(
    "metrics",
    metadata,
    Column("job_id", Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("step", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Name, primary_key=True),
    Column("value", Double),  # null where the number was not finite
    Column("at", Double, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant", Id, primary_key=True),
    Column("key", Name, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("job_id", Id, nullable=False),  # what the request made: a job or a batch
    Column("created_at", Double, nullable=False),
    Column("expires_at", Double, nullable=False, index=True),
)

outbox = Table(
    "outbox",
    metadata,
    Column("id", Serial, primary_key=True),
    Column("topic", Name, nullable=False),
    Column("queue", Name, nullable=False),
    Column("job_id", Id, nullable=False),
    Column("payload", Json, nullable=False),
    Column("due_at", Double, nullable=False),
    Column("sent_at", Double),
    Index(None, "sent_at", "id"),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Name, primary_key=True),
    Column("host", Name, nullable=False),
    Column("queues", Json, nullable=False),
    Column("devices", Json, nullable=False),
    Column("version", Name, nullable=False),
    Column("draining", Boolean, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("seen_at", Double, nullable=False),
)
