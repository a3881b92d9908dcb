"""How a job changes: lock the row, decide, then write state, version and event together.

Every function here runs inside a caller's transaction. The event counter sits on the job's row,
so that sequence numbers are handed out under its lock: no gap, no duplicate, on either database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from stiefel_jobs.database import Database
from stiefel_jobs.errors import NotFoundError, StaleFenceError
from stiefel_jobs.records import Blob, Job, NewEvent
from stiefel_jobs.states import LEASED, NEXT, TERMINAL, Blame, State
from stiefel_jobs.tables import blobs, job_events, jobs, outbox


def under_fence(connection: Connection, *, job_id: str, fence: int) -> Row[Any]:
    """Lock the job if ``fence`` still holds it; raise StaleFenceError otherwise."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).first()
    if row is None or row.fence != fence or State(row.state) not in LEASED:
        raise stale(job_id, fence)
    return row


def owned(connection: Connection, *, tenant: str, job_id: str) -> Row[Any]:
    """Lock a tenant's job; raise NotFoundError where it has none of that id."""
    query = select(jobs).where(jobs.c.id == job_id, jobs.c.tenant == tenant).with_for_update()
    row = connection.execute(query).first()
    if row is None:
        raise NotFoundError(f"Job {job_id} does not exist.")
    return row


def stale(job_id: str, fence: int) -> StaleFenceError:
    """Return the error of a worker that writes too late."""
    return StaleFenceError(f"Job {job_id} is no longer held under fence {fence}.")


def change(
    connection: Connection,
    db: Database,
    row: Row[Any],
    state: State,
    *,
    data: Mapping[str, Any] | None = None,
    ring: bool = True,
    **values: Any,
) -> None:
    """Move the locked job to ``state``, telling its event stream, and ring where a worker is due.

    ``data`` joins the event; ``values`` are further columns of the job.
    """
    previous = State(row.state)
    if state not in NEXT[previous]:
        raise RuntimeError(f"no transition from {previous} to {state}")
    if state not in LEASED:
        values |= {"worker": None, "lease_until": None}
    if state in TERMINAL:
        values["finished_at"] = db.now
    values["state"] = state
    detail = {"state": state, "previous": previous, **(data or {})}
    tell(connection, db, row.id, [NewEvent("job.status", detail)], **values)
    if state is State.QUEUED and ring:
        due_at = values.get("not_before", db.now)
        enqueue_ring(connection, db, queue=row.queue, job_id=row.id, due_at=due_at)


def tell(
    connection: Connection, db: Database, job_id: str, events: Sequence[NewEvent], **values: Any
) -> None:
    """Append events to the locked job and set ``values``; the version grows by one."""
    last = connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id)
        .values(version=jobs.c.version + 1, last_seq=jobs.c.last_seq + len(events), **values)
        .returning(jobs.c.last_seq)
    ).scalar_one()
    first = last - len(events) + 1
    rows = [
        {"job_id": job_id, "seq": first + index, "type": event.type, "data": dict(event.data)}
        for index, event in enumerate(events)
    ]
    if rows:
        connection.execute(insert(job_events).values(at=db.now), rows)


def enqueue_ring(
    connection: Connection, db: Database, *, queue: str, job_id: str, due_at: Any = None
) -> None:
    """Note in the outbox that a worker of ``queue`` should look for this job, from ``due_at``."""
    due = db.now if due_at is None else due_at
    row: dict[str, Any] = {
        "topic": "ring",
        "queue": queue,
        "job_id": job_id,
        "payload": {},
        "due_at": due,
    }
    connection.execute(insert(outbox).values(**row))


def upsert(db: Database, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that knows ``on_conflict_do_…``, in the database's dialect."""
    return sqlite.insert(table) if db.sqlite else postgresql.insert(table)


def keep_blobs(connection: Connection, db: Database, tenant: str, kept: Sequence[Blob]) -> None:
    """Record blobs whose bytes are in the store, or that they are in use again."""
    # Sorted, so that two transactions that share blobs lock them in one order.
    unique = sorted({blob.sha256: blob.size for blob in kept}.items())
    if not unique:
        return
    statement = (
        upsert(db, blobs)
        .values(created_at=db.now, touched_at=db.now)
        .on_conflict_do_update(
            index_elements=[blobs.c.tenant, blobs.c.sha256], set_={"touched_at": db.now}
        )
    )
    connection.execute(
        statement, [{"tenant": tenant, "sha256": sha, "size": size} for sha, size in unique]
    )


def job_record(row: Row[Any]) -> Job:
    """Turn a row of the jobs table into the record."""
    values = {name: getattr(row, name) for name in Job.__dataclass_fields__}
    values["state"] = State(row.state)
    values["blame"] = Blame(row.blame) if row.blame else None
    return Job(**values)


def read_job(connection: Connection, job_id: str) -> Job:
    """Read a job that is known to exist."""
    return job_record(connection.execute(select(jobs).where(jobs.c.id == job_id)).one())
