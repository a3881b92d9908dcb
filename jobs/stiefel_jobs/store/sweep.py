"""What nobody else will do: settle lost leases and passed deadlines, ring again, tidy up."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, select, update

from stiefel_jobs.database import Database
from stiefel_jobs.records import SweepReport
from stiefel_jobs.states import LEASED, Blame, State
from stiefel_jobs.store.attempts import give_up, lose
from stiefel_jobs.store.changes import change
from stiefel_jobs.store.outbox import SENT_KEPT_S
from stiefel_jobs.store.workers import largest_share, too_large
from stiefel_jobs.tables import idempotency, jobs, outbox

#: An unsent message this old has been forgotten by whoever should have sent it.
RING_AGAIN_S = 2.0
#: So long a job that fits no worker waits for one that it fits.
LARGER_WORKER_S = 120.0
_BATCH = 100

Settle = Callable[[Connection, Database, Row[Any]], State]


def sweep(db: Database) -> SweepReport:
    """Run one sweep. Any number of sweepers may run at once: each job is settled under its lock.

    Expired leases: running or finalizing jobs are queued again or, out of attempts, failed;
    pausing ones are paused, cancelling ones cancelled. Queued and paused jobs past their
    deadline expire; queued ones too large for every worker of their queue fail when they have
    waited long enough.
    ``report.ring`` names the queues to ring; its messages count as sent, for a ring that is lost
    again costs no more than the workers' polling interval.
    """
    settled = _settle(db, (jobs.c.state.in_(LEASED)) & (jobs.c.lease_until < db.now), lose)
    # A worker that holds a job watches the deadline itself; nobody else watches one at rest.
    resting = jobs.c.state.in_([State.QUEUED, State.PAUSED])
    settled += _settle(db, resting & (jobs.c.deadline_at <= db.now), _expire)
    settled += _refuse_misfits(db)
    ids = {
        state: tuple(job_id for job_id, now in settled if now is state)
        for state in (State.QUEUED, State.FAILED, State.PAUSED, State.CANCELLED, State.EXPIRED)
    }
    return SweepReport(
        requeued=ids[State.QUEUED],
        failed=ids[State.FAILED],
        paused=ids[State.PAUSED],
        cancelled=ids[State.CANCELLED],
        expired=ids[State.EXPIRED],
        ring=_tidy(db, ids[State.QUEUED]),
    )


def _settle(db: Database, due: ColumnElement[bool], settle: Settle) -> list[tuple[str, State]]:
    with db.read() as connection:
        found = connection.execute(select(jobs.c.id).where(due).limit(_BATCH)).scalars().all()
    settled = []
    for job_id in found:
        with db.write() as connection:
            # Looked at again under the lock: the worker may have come back, or a rival been here.
            query = select(jobs).where(jobs.c.id == job_id, due)
            row = connection.execute(query.with_for_update(skip_locked=True)).first()
            if row is not None:
                settled.append((job_id, settle(connection, db, row)))
    return settled


def _expire(connection: Connection, db: Database, row: Row[Any]) -> State:
    change(connection, db, row, State.EXPIRED, reason="deadline passed")
    return State.EXPIRED


def _refuse_misfits(db: Database) -> list[tuple[str, State]]:
    large = (
        (jobs.c.state == State.QUEUED)
        & jobs.c.peak_memory_bytes.is_not(None)
        & (jobs.c.queued_at <= db.now - LARGER_WORKER_S)
    )
    with db.read() as connection:
        queues = connection.execute(select(jobs.c.queue).where(large).distinct()).scalars().all()
    settled = []
    for queue in queues:
        share = largest_share(db, queue)
        if share is not None:
            due = large & (jobs.c.queue == queue) & (jobs.c.peak_memory_bytes > share)
            settled += _settle(db, due, partial(_refuse, share))
    return settled


def _refuse(share: int, connection: Connection, db: Database, row: Row[Any]) -> State:
    error = too_large(row.peak_memory_bytes, share)
    return give_up(connection, db, row, reason=error["code"], blame=Blame.RESOURCE, error=error)


def _tidy(db: Database, requeued: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Hand out the messages to ring, and forget those and keys that have served."""
    late = (outbox.c.due_at <= db.now - RING_AGAIN_S) | outbox.c.job_id.in_(requeued)
    with db.write() as connection:
        due = set(
            connection.execute(
                update(outbox)
                .where(outbox.c.sent_at.is_(None), late)
                .values(sent_at=db.now)
                .returning(outbox.c.job_id)
            ).scalars()
        )
        waiting = connection.execute(
            select(jobs.c.queue, jobs.c.id)
            .where(jobs.c.id.in_(due), jobs.c.state == State.QUEUED)
            .order_by(jobs.c.id)
        ).all()
        connection.execute(delete(outbox).where(outbox.c.sent_at < db.now - SENT_KEPT_S))
        connection.execute(delete(idempotency).where(idempotency.c.expires_at < db.now))
    return tuple((queue, job_id) for queue, job_id in waiting)
