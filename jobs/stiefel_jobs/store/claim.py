"""Take a job under a lease, and keep the lease."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    and_,
    case,
    func,
    insert,
    not_,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.sql.elements import ColumnElement

from stiefel_jobs.database import Database
from stiefel_jobs.records import Artifact, Checkpoint, Claim
from stiefel_jobs.states import LEASED, PRIORITIES, Blame, State
from stiefel_jobs.store.attempts import end_attempt, give_up, lose
from stiefel_jobs.store.changes import change, stale
from stiefel_jobs.store.queries import last_checkpoint
from stiefel_jobs.tables import artifacts, attempts, job_inputs, jobs

#: Waiting this long lifts a job by one priority, up to the highest, so that none starves.
AGEING_S = 600.0
_TOP = max(PRIORITIES.values())


def claim(
    db: Database,
    *,
    worker: str,
    queues: Sequence[str],
    lease_s: float = 30.0,
    job_id: str | None = None,
    memory_bytes: Mapping[str, int] | None = None,
) -> Claim | None:
    """Take the next job of ``queues`` for ``lease_s`` seconds, or return None.

    The order is priority with ageing, then the tenant with the fewest running jobs, then age. A
    job whose lease has run out is taken over here too, without waiting for the sweeper; its lost
    attempt is closed and counted first. ``job_id`` narrows the choice to one job, ``memory_bytes``
    (by queue) to those that are expected to fit.
    """
    with db.write() as connection:
        while (row := _candidate(connection, db, queues, job_id, memory_bytes)) is not None:
            if row.state != State.QUEUED:
                # Not queued again: the budget is spent, look for another job.
                if lose(connection, db, row, ring=False) is not State.QUEUED:
                    continue
                row = connection.execute(select(jobs).where(jobs.c.id == row.id)).one()
            taken = _take(connection, db, row, worker, lease_s)
            if taken is not None:
                return taken
    return None


def renew(db: Database, *, job_id: str, fence: int, lease_s: float = 30.0) -> State:
    """Extend the lease from now; return what is wanted: running, pausing, cancelling, finalizing.

    Raises:
        StaleFenceError: the job has moved on.
    """
    with db.write() as connection:
        state = connection.execute(
            update(jobs)
            .where(_held(job_id, fence))
            .values(lease_until=db.now + lease_s)
            .returning(jobs.c.state)
        ).scalar()
    if state is None:
        raise stale(job_id, fence)
    return State(state)


def wanted(db: Database, *, job_id: str, fence: int) -> State:
    """Return what ``renew`` would, without writing: cheap enough to ask often.

    Raises:
        StaleFenceError: the job has moved on.
    """
    with db.read() as connection:
        state = connection.execute(select(jobs.c.state).where(_held(job_id, fence))).scalar()
    if state is None:
        raise stale(job_id, fence)
    return State(state)


def _held(job_id: str, fence: int) -> ColumnElement[bool]:
    return and_(jobs.c.id == job_id, jobs.c.fence == fence, jobs.c.state.in_(LEASED))


def _candidate(
    connection: Connection,
    db: Database,
    queues: Sequence[str],
    job_id: str | None,
    memory_bytes: Mapping[str, int] | None,
) -> Row[Any] | None:
    busy = (
        select(jobs.c.tenant, func.count().label("running"))
        .where(jobs.c.state.in_(LEASED))
        .group_by(jobs.c.tenant)
        .subquery()
    )
    query = (
        select(jobs)
        .join(busy, busy.c.tenant == jobs.c.tenant, isouter=True)
        .where(
            jobs.c.queue.in_(queues),
            _fits(memory_bytes),
            or_(jobs.c.deadline_at.is_(None), jobs.c.deadline_at > db.now),
            or_(
                and_(jobs.c.state == State.QUEUED, jobs.c.not_before <= db.now),
                and_(
                    jobs.c.state.in_([State.RUNNING, State.FINALIZING]),
                    jobs.c.lease_until < db.now,
                ),
            ),
        )
        .order_by(_aged(db).desc(), func.coalesce(busy.c.running, 0), jobs.c.id)
        .limit(1)
        .with_for_update(of=jobs, skip_locked=True)
    )
    if job_id is not None:
        query = query.where(jobs.c.id == job_id)
    return connection.execute(query).first()


def _fits(memory_bytes: Mapping[str, int] | None) -> ColumnElement[bool]:
    if not memory_bytes:
        return true()
    needed = jobs.c.peak_memory_bytes
    narrow = [and_(jobs.c.queue == queue, needed > limit) for queue, limit in memory_bytes.items()]
    return or_(needed.is_(None), not_(or_(*narrow)))


def _aged(db: Database) -> ColumnElement[int]:
    waited = db.now - jobs.c.queued_at
    steps = case((waited >= 2 * AGEING_S, 2), (waited >= AGEING_S, 1), else_=0)
    raised = jobs.c.priority + steps
    return case((jobs.c.priority >= _TOP, jobs.c.priority), (raised > _TOP, _TOP), else_=raised)


def _take(
    connection: Connection, db: Database, row: Row[Any], worker: str, lease_s: float
) -> Claim | None:
    """Lease the locked, queued job; None, and a failed job, where an input has been deleted."""
    fence, attempt = row.fence + 1, row.attempt + 1
    checkpoint = _begin_attempt(connection, db, row, worker, lease_s)
    inputs = _inputs(connection, row.id)
    if missing := sorted(set(row.inputs) - set(inputs)):
        _fail_for_input(connection, db, row.id, row.inputs[missing[0]])
        return None
    left = connection.execute(select(jobs.c.deadline_at - db.now).where(jobs.c.id == row.id))
    return Claim(
        job_id=row.id,
        tenant=row.tenant,
        method=row.method,
        spec=row.spec,
        inputs=inputs,
        queue=row.queue,
        fence=fence,
        attempt=attempt,
        checkpoint=checkpoint,
        deadline_at=row.deadline_at,
        seconds_left=left.scalar(),
        output_ttl_s=row.output_ttl_s,
        traceparent=row.traceparent,
    )


def _begin_attempt(
    connection: Connection, db: Database, row: Row[Any], worker: str, lease_s: float
) -> Checkpoint | None:
    """Write the lease and the attempt; return the checkpoint it resumes from."""
    fence, attempt = row.fence + 1, row.attempt + 1
    change(
        connection,
        db,
        row,
        State.RUNNING,
        data={"attempt": attempt, "worker": worker},
        fence=fence,
        attempt=attempt,
        worker=worker,
        lease_until=db.now + lease_s,
        started_at=func.coalesce(jobs.c.started_at, db.now),
        progress_at=db.now,
        base_done=None,
        base_at=None,
    )
    checkpoint = last_checkpoint(connection, row.id)
    connection.execute(
        insert(attempts).values(
            job_id=row.id,
            number=attempt,
            fence=fence,
            worker=worker,
            resumed_from=checkpoint.step if checkpoint else None,
            started_at=db.now,
        )
    )
    return checkpoint


def _inputs(connection: Connection, job_id: str) -> dict[str, Artifact]:
    query = (
        select(job_inputs.c.name.label("staged_as"), artifacts)
        .join(artifacts, artifacts.c.id == job_inputs.c.artifact_id)
        .where(job_inputs.c.job_id == job_id)
    )
    return {
        row.staged_as: Artifact(**{n: getattr(row, n) for n in Artifact.__dataclass_fields__})
        for row in connection.execute(query)
    }


def _fail_for_input(connection: Connection, db: Database, job_id: str, artifact: str) -> None:
    error = {
        "code": "input_missing",
        "detail": f"Artifact {artifact} was deleted before the job could read it.",
        "fix": "Upload the file again and submit a new job.",
    }
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one()
    end_attempt(connection, db, row, reason="input_missing", blame=Blame.USER, error=error)
    give_up(connection, db, row, reason="input_missing", blame=Blame.USER, error=error)
