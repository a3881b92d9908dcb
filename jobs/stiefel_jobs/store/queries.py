"""Reading jobs and all that belongs to them. Whatever serves a caller takes a tenant."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, select, tuple_

from stiefel_jobs.database import Database
from stiefel_jobs.errors import NotFoundError
from stiefel_jobs.records import (
    Attempt,
    Checkpoint,
    Event,
    Job,
    Page,
    Point,
    Segment,
    StateFile,
)
from stiefel_jobs.states import TERMINAL, Blame, State
from stiefel_jobs.store.changes import job_record
from stiefel_jobs.tables import attempts as attempts_table
from stiefel_jobs.tables import checkpoints as checkpoints_table
from stiefel_jobs.tables import job_events, job_labels, jobs
from stiefel_jobs.tables import metrics as metrics_table


def get_job(db: Database, *, tenant: str, job_id: str) -> Job:
    """Return a tenant's job.

    Raises:
        NotFoundError: unknown or another tenant's.
    """
    with db.read() as connection:
        row = connection.execute(
            select(jobs).where(jobs.c.id == job_id, jobs.c.tenant == tenant)
        ).first()
    if row is None:
        raise NotFoundError(f"Job {job_id} does not exist.")
    return job_record(row)


def list_jobs(
    db: Database,
    *,
    tenant: str,
    states: Iterable[State] = (),
    labels: Mapping[str, str] | None = None,
    batch_id: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Page[Job]:
    """Return a tenant's jobs, newest first; all of ``labels`` and any of ``states`` must match."""
    query = select(jobs).where(jobs.c.tenant == tenant)
    if batch_id is not None:
        query = query.where(jobs.c.batch_id == batch_id)
    if wanted := list(states):
        query = query.where(jobs.c.state.in_(wanted))
    for key, value in (labels or {}).items():
        query = query.where(
            jobs.c.id.in_(
                select(job_labels.c.job_id).where(
                    job_labels.c.tenant == tenant,
                    job_labels.c.key == key,
                    job_labels.c.value == value,
                )
            )
        )
    if after is not None:
        query = query.where(jobs.c.id < after)
    with db.read() as connection:
        rows = connection.execute(query.order_by(jobs.c.id.desc()).limit(limit + 1)).all()
    items = [job_record(row) for row in rows[:limit]]
    return Page(items, items[-1].id if len(rows) > limit else None)


def events(
    db: Database, *, tenant: str, job_id: str, after_seq: int = 0, limit: int = 500
) -> list[Event]:
    """Return a job's events after ``after_seq``, in order."""
    query = (
        select(job_events.c.seq, job_events.c.at, job_events.c.type, job_events.c.data)
        .where(job_events.c.job_id == job_id, job_events.c.seq > after_seq)
        .order_by(job_events.c.seq)
        .limit(limit)
    )
    with db.read() as connection:
        _check_owner(connection, tenant, job_id)
        return [Event(*row) for row in connection.execute(query)]


def metrics(
    db: Database,
    *,
    tenant: str,
    job_id: str,
    name: str | None = None,
    after: tuple[int, str] | None = None,
    limit: int = 1000,
) -> list[Point]:
    """Return points ordered by step, then name; continue after the last one's ``(step, name)``."""
    table = metrics_table
    query = (
        select(table.c.name, table.c.step, table.c.value, table.c.at)
        .where(table.c.job_id == job_id)
        .order_by(table.c.step, table.c.name)
        .limit(limit)
    )
    if name is not None:
        query = query.where(table.c.name == name)
    if after is not None:
        query = query.where(tuple_(table.c.step, table.c.name) > tuple_(*after))
    with db.read() as connection:
        _check_owner(connection, tenant, job_id)
        return [Point(*row) for row in connection.execute(query)]


def metrics_since(
    db: Database,
    *,
    tenant: str,
    job_id: str,
    name: str | None = None,
    after: tuple[float, int, str],
    limit: int = 1000,
) -> list[Point]:
    """Return points in the order in which they were written, from the last ``(at, step, name)``."""
    table = metrics_table
    order = (table.c.at, table.c.step, table.c.name)
    query = (
        select(table.c.name, table.c.step, table.c.value, table.c.at)
        .where(table.c.job_id == job_id, tuple_(*order) > tuple_(*after))
        .order_by(*order)
        .limit(limit)
    )
    if name is not None:
        query = query.where(table.c.name == name)
    with db.read() as connection:
        _check_owner(connection, tenant, job_id)
        return [Point(*row) for row in connection.execute(query)]


def metrics_at(
    db: Database, *, tenant: str, job_id: str, steps: Collection[int]
) -> dict[int, dict[str, float]]:
    """Return the finite numbers of every series at ``steps``, by step."""
    table = metrics_table
    query = select(table.c.step, table.c.name, table.c.value).where(
        table.c.job_id == job_id, table.c.step.in_(steps), table.c.value.is_not(None)
    )
    found: dict[int, dict[str, float]] = {}
    with db.read() as connection:
        _check_owner(connection, tenant, job_id)
        for step, name, value in connection.execute(query.order_by(table.c.name)):
            found.setdefault(step, {})[name] = value
    return found


def attempts(db: Database, *, tenant: str, job_id: str) -> list[Attempt]:
    """Return a job's attempts, first to last."""
    table = attempts_table
    columns = [table.c[name] for name in Attempt.__dataclass_fields__ if name != "blame"]
    query = select(*columns, table.c.blame).where(table.c.job_id == job_id)
    with db.read() as connection:
        _check_owner(connection, tenant, job_id)
        rows = connection.execute(query.order_by(table.c.number)).mappings()
        return [
            Attempt(**{**row, "blame": Blame(row["blame"]) if row["blame"] else None})
            for row in rows
        ]


def checkpoints(db: Database, *, tenant: str, job_id: str) -> list[Checkpoint]:
    """Return the checkpoints kept for a job, oldest first."""
    table = checkpoints_table
    query = select(table).where(table.c.job_id == job_id).order_by(table.c.number)
    with db.read() as connection:
        _check_owner(connection, tenant, job_id)
        return [_checkpoint(row) for row in connection.execute(query)]


def last_checkpoint(connection: Connection, job_id: str) -> Checkpoint | None:
    """Return where a job continues; for the store's own transactions."""
    table = checkpoints_table
    query = select(table).where(table.c.job_id == job_id).order_by(table.c.number.desc()).limit(1)
    row = connection.execute(query).first()
    return _checkpoint(row) if row is not None else None


def versions(db: Database, ids: Sequence[str]) -> dict[str, int]:
    """Return the versions of many jobs and batches; for the process that wakes all waiters.

    One query serves all jobs, and a second one all batches where there are any.
    """
    batch_ids = [each for each in ids if each.startswith("batch_")]
    query = select(jobs.c.id, jobs.c.version).where(jobs.c.id.in_(ids))
    total = func.sum(jobs.c.version).label("version")
    summed = select(jobs.c.batch_id, total).where(jobs.c.batch_id.in_(batch_ids))
    with db.read() as connection:
        found = {row.id: row.version for row in connection.execute(query)}
        if batch_ids:
            rows = connection.execute(summed.group_by(jobs.c.batch_id))
            found |= {row.batch_id: int(row.version) for row in rows}
    return found


def position(db: Database, *, tenant: str, job_id: str) -> int | None:
    """Return how many jobs of its queue stand before a queued job, or None when it is not queued.

    Priority and age decide here; ageing and fairness between tenants may still change the order.
    """
    job = get_job(db, tenant=tenant, job_id=job_id)
    if job.state is not State.QUEUED:
        return None
    query = select(func.count()).where(
        jobs.c.queue == job.queue,
        jobs.c.state == State.QUEUED,
        (jobs.c.priority > job.priority)
        | ((jobs.c.priority == job.priority) & (jobs.c.id < job.id)),
    )
    with db.read() as connection:
        return connection.execute(query).scalar_one()


@dataclass(frozen=True, slots=True)
class Depth:
    """How many jobs of a queue are in a state, and for how long the oldest has been queued."""

    queue: str
    state: State
    count: int
    oldest_s: float


def depths(db: Database) -> list[Depth]:
    """Return the live load of every queue, for metrics and scaling."""
    query = (
        select(
            jobs.c.queue,
            jobs.c.state,
            func.count(),
            (db.now - func.min(jobs.c.queued_at)),
        )
        .where(jobs.c.state.in_([state for state in State if state not in TERMINAL]))
        .group_by(jobs.c.queue, jobs.c.state)
    )
    with db.read() as connection:
        rows = connection.execute(query)
        return [Depth(queue, State(state), count, age) for queue, state, count, age in rows]


def _check_owner(connection: Connection, tenant: str, job_id: str) -> None:
    query = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.tenant == tenant)
    if connection.execute(query).first() is None:
        raise NotFoundError(f"Job {job_id} does not exist.")


def _checkpoint(row: Row[Any]) -> Checkpoint:
    files = tuple(
        StateFile(
            path=file["path"],
            size=file["size"],
            segments=tuple(Segment(**segment) for segment in file["segments"]),
        )
        for file in row.files
    )
    return Checkpoint(
        number=row.number,
        step=row.step,
        attempt=row.attempt,
        size=row.size,
        files=files,
        created_at=row.created_at,
    )
