"""Change what a job's owner may change while it exists: labels and priority."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, delete, insert

from stiefel_jobs.database import Database
from stiefel_jobs.errors import StoreError
from stiefel_jobs.records import Job, NewEvent
from stiefel_jobs.store.changes import owned, read_job, tell
from stiefel_jobs.tables import job_labels


def amend(
    db: Database,
    *,
    tenant: str,
    job_id: str,
    version: int | None,
    labels: Mapping[str, str] | None = None,
    priority: int | None = None,
) -> Job:
    """Replace labels, priority, or both; None leaves them as they are.

    Args:
        db: where the job is.
        tenant: its owner.
        job_id: which job.
        version: the version that the change starts from; None takes any.
        labels: all of the new labels.
        priority: counts while the job is queued.

    Raises:
        NotFoundError: the tenant has no such job.
        StoreError: ``version_mismatch``: the job has changed since.
    """
    with db.write() as connection:
        row = owned(connection, tenant=tenant, job_id=job_id)
        if version is not None and row.version != version:
            raise StoreError(
                f"Job {job_id} is at version {row.version}, not {version}.",
                code="version_mismatch",
                fix="Read the job again and repeat the change with its new ETag.",
            )
        values: dict[str, Any] = {}
        if labels is not None:
            values["labels"] = dict(labels)
            _replace_labels(connection, row, labels)
        if priority is not None:
            values["priority"] = priority
        if values:
            tell(connection, db, job_id, [NewEvent("job.amended", dict(values))], **values)
        return read_job(connection, job_id)


def _replace_labels(connection: Connection, row: Row[Any], labels: Mapping[str, str]) -> None:
    connection.execute(delete(job_labels).where(job_labels.c.job_id == row.id))
    rows = [{"key": key, "value": value} for key, value in labels.items()]
    if rows:
        connection.execute(insert(job_labels).values(job_id=row.id, tenant=row.tenant), rows)
