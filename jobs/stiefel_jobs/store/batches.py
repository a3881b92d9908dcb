"""Batches: many jobs accepted in one transaction, and looked at as one.

A batch has no state of its own: its counts and its version are those of its jobs, so that nothing
has to be kept in step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from stiefel_jobs.batch_records import Batch, BatchSubmitted, NewBatch
from stiefel_jobs.database import Database
from stiefel_jobs.errors import ActionNotAllowedError, NotFoundError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import Job, Page
from stiefel_jobs.states import TERMINAL, State
from stiefel_jobs.store.actions import cancel as cancel_job
from stiefel_jobs.store.changes import job_record
from stiefel_jobs.store.replays import earlier
from stiefel_jobs.store.submit import NewJob, place, reserve
from stiefel_jobs.tables import batches, jobs


def submit_batch(
    db: Database,
    *,
    tenant: str,
    new: NewBatch,
    fingerprint: str,
    idempotency_key: str | None = None,
    max_live: int | None = None,
) -> BatchSubmitted:
    """Queue all jobs of a batch in one transaction; on return they are committed, or none is.

    Args:
        db: where they will live.
        tenant: their owner.
        new: the validated request.
        fingerprint: digest of the request.
        idempotency_key: the same key and fingerprint within 7 days give the same batch.
        max_live: how many unfinished jobs the tenant may have.

    Raises:
        IdempotencyConflictError: the key belongs to another request.
        NotFoundError: an input artifact is unknown, foreign or expired.
        LimitError: the batch would exceed ``max_live``.
    """
    batch_id = new_id("batch")
    with db.write() as connection:
        if idempotency_key is not None:
            winner = reserve(connection, db, tenant, idempotency_key, fingerprint, batch_id)
            if winner is not None:
                return _submitted(connection, tenant, winner, replayed=True)
        # Ids grow within a process: the order of the jobs is that of the cells.
        made = [NewJob(new_id("job"), job, batch_id, name) for name, job in new.cells]
        place(connection, db, tenant, made, max_live=max_live)
        connection.execute(
            insert(batches).values(
                id=batch_id,
                tenant=tenant,
                name=new.name,
                labels=dict(new.labels),
                axes=[dict(axis) for axis in new.axes],
                size=len(made),
                created_at=db.now,
            )
        )
        return _submitted(connection, tenant, batch_id, replayed=False)


def earlier_batch(
    db: Database, *, tenant: str, key: str, fingerprint: str
) -> BatchSubmitted | None:
    """Return the batch that an earlier request with this idempotency key made.

    Raises:
        IdempotencyConflictError: the key belongs to another request.
    """
    with db.read() as connection:
        made = earlier(connection, db, tenant=tenant, key=key, fingerprint=fingerprint)
        return None if made is None else _submitted(connection, tenant, made, replayed=True)


def get_batch(db: Database, *, tenant: str, batch_id: str) -> Batch:
    """Return a tenant's batch.

    Raises:
        NotFoundError: unknown or another tenant's.
    """
    with db.read() as connection:
        return _read(connection, tenant, batch_id)


def batch_jobs(db: Database, *, tenant: str, batch_id: str) -> tuple[Batch, list[Job]]:
    """Return a batch and its jobs in grid order; the counts are those of these very jobs.

    Raises:
        NotFoundError: unknown or another tenant's.
    """
    query = select(jobs).where(jobs.c.batch_id == batch_id).order_by(jobs.c.id)
    with db.read() as connection:
        row = _row(connection, tenant, batch_id)
        found = [job_record(row) for row in connection.execute(query)]
    states = Counter(job.state for job in found)
    ends = [job.finished_at for job in found]
    return _record(row, states, sum(job.version for job in found), ends), found


def list_batches(
    db: Database, *, tenant: str, after: str | None = None, limit: int = 50
) -> Page[Batch]:
    """Return a tenant's batches, newest first."""
    query = select(batches).where(batches.c.tenant == tenant)
    if after is not None:
        query = query.where(batches.c.id < after)
    with db.read() as connection:
        rows = connection.execute(query.order_by(batches.c.id.desc()).limit(limit + 1)).all()
        items = _records(connection, rows[:limit])
    return Page(items, items[-1].id if len(rows) > limit else None)


def cancel_batch(db: Database, *, tenant: str, batch_id: str) -> Batch:
    """Cancel every job that can still be cancelled; the others stay as they are.

    Each job is cancelled in a transaction of its own, so that a large batch holds up no worker.

    Raises:
        NotFoundError: unknown or another tenant's.
    """
    batch, found = batch_jobs(db, tenant=tenant, batch_id=batch_id)
    for job in found:
        if job.state not in TERMINAL:
            try:
                cancel_job(db, tenant=tenant, job_id=job.id)
            except ActionNotAllowedError:
                continue  # it ended, or is delivering, in the meantime
    return get_batch(db, tenant=tenant, batch_id=batch.id)


def _submitted(
    connection: Connection, tenant: str, batch_id: str, *, replayed: bool
) -> BatchSubmitted:
    query = select(jobs.c.id).where(jobs.c.batch_id == batch_id).order_by(jobs.c.id)
    ids = tuple(connection.execute(query).scalars())
    return BatchSubmitted(_read(connection, tenant, batch_id), ids, replayed)


def _read(connection: Connection, tenant: str, batch_id: str) -> Batch:
    return _records(connection, [_row(connection, tenant, batch_id)])[0]


def _row(connection: Connection, tenant: str, batch_id: str) -> Row[Any]:
    query = select(batches).where(batches.c.id == batch_id, batches.c.tenant == tenant)
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError(f"Batch {batch_id} does not exist.")
    return row


def _records(connection: Connection, rows: Sequence[Row[Any]]) -> list[Batch]:
    """Count the jobs of all these batches with one query."""
    columns = (
        jobs.c.batch_id,
        jobs.c.state,
        func.count().label("jobs"),
        func.sum(jobs.c.version).label("version"),
        func.max(jobs.c.finished_at).label("finished_at"),
    )
    query = select(*columns).where(jobs.c.batch_id.in_([row.id for row in rows]))
    tallies: dict[str, list[Row[Any]]] = {row.id: [] for row in rows}
    for tally in connection.execute(query.group_by(jobs.c.batch_id, jobs.c.state)):
        tallies[tally.batch_id].append(tally)
    return [
        _record(
            row,
            {State(tally.state): int(tally.jobs) for tally in tallies[row.id]},
            sum(int(tally.version) for tally in tallies[row.id]),
            [tally.finished_at for tally in tallies[row.id]],
        )
        for row in rows
    ]


def _record(
    row: Row[Any], counts: Mapping[State, int], version: int, ends: Sequence[float | None]
) -> Batch:
    over = [end for end in ends if end is not None]
    return Batch(
        id=row.id,
        tenant=row.tenant,
        name=row.name,
        labels=row.labels,
        axes=row.axes,
        size=row.size,
        created_at=row.created_at,
        counts=counts,
        version=version,
        finished_at=max(over) if TERMINAL.issuperset(counts) else None,
    )
