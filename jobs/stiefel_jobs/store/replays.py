"""Has this request been made before? Asked first, for the answer must not depend on today."""

from __future__ import annotations

from sqlalchemy import Connection, select

from stiefel_jobs.database import Database
from stiefel_jobs.errors import IdempotencyConflictError
from stiefel_jobs.records import Job
from stiefel_jobs.store.changes import read_job
from stiefel_jobs.tables import idempotency


def earlier_job(db: Database, *, tenant: str, key: str, fingerprint: str) -> Job | None:
    """Return the job that an earlier request with this idempotency key made.

    ``submit`` decides between requests that run at once; this one lets a repeated request find
    its job although, say, the input has been deleted since.

    Raises:
        IdempotencyConflictError: the key belongs to another request.
    """
    with db.read() as connection:
        made = earlier(connection, db, tenant=tenant, key=key, fingerprint=fingerprint)
        return None if made is None else read_job(connection, made)


def earlier(
    connection: Connection, db: Database, *, tenant: str, key: str, fingerprint: str
) -> str | None:
    """Return the id of the job or batch that an earlier request with this key made.

    Raises:
        IdempotencyConflictError: the key belongs to another request.
    """
    query = select(idempotency.c.fingerprint, idempotency.c.job_id).where(
        idempotency.c.tenant == tenant,
        idempotency.c.key == key,
        idempotency.c.expires_at >= db.now,
    )
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise IdempotencyConflictError(f"Idempotency-Key {key!r} was used for another request.")
    return str(row.job_id)
