"""Accept a job: the job, its first event, its place in the outbox, and its idempotency key.

A batch is accepted by the same functions, for many jobs at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, Double, bindparam, func, insert, or_, select, update

from stiefel_jobs.database import Database
from stiefel_jobs.errors import IdempotencyConflictError, LimitError, NotFoundError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import Submission, Submitted
from stiefel_jobs.states import TERMINAL, State
from stiefel_jobs.store.changes import read_job, upsert
from stiefel_jobs.tables import (
    artifacts,
    idempotency,
    job_events,
    job_inputs,
    job_labels,
    jobs,
    outbox,
)

KEY_KEPT_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job about to be written."""

    id: str
    submission: Submission
    batch_id: str | None = None
    custom_id: str | None = None


def submit(
    db: Database,
    *,
    tenant: str,
    submission: Submission,
    idempotency_key: str | None = None,
    fingerprint: str | None = None,
    max_live: int | None = None,
) -> Submitted:
    """Queue a job in one transaction; on return it is committed.

    Args:
        db: where the job will live.
        tenant: its owner.
        submission: the validated request.
        idempotency_key: the same key and request within 7 days give the same job, also when the
            requests run at once: the loser waits for the winner's commit and reads its row.
        fingerprint: digest of the request; by default that of ``submission``.
        max_live: how many unfinished jobs the tenant may have.

    Raises:
        IdempotencyConflictError: the key belongs to another request.
        NotFoundError: an input artifact is unknown, foreign or expired.
        LimitError: ``max_live`` is reached.
    """
    job_id = new_id("job")
    with db.write() as connection:
        if idempotency_key is not None:
            fingerprint = fingerprint or _fingerprint(submission)
            winner = reserve(connection, db, tenant, idempotency_key, fingerprint, job_id)
            if winner is not None:
                return Submitted(read_job(connection, winner), replayed=True)
        place(connection, db, tenant, [NewJob(job_id, submission)], max_live=max_live)
        return Submitted(read_job(connection, job_id), replayed=False)


def place(
    connection: Connection,
    db: Database,
    tenant: str,
    new: Sequence[NewJob],
    *,
    max_live: int | None,
) -> None:
    """Write jobs with their first events and rings, within the caller's transaction.

    Raises:
        NotFoundError: an input artifact is unknown, foreign or expired.
        LimitError: the tenant would have more than ``max_live`` unfinished jobs.
    """
    _check_inputs(connection, db, tenant, new)
    _check_quota(connection, db, tenant, len(new), max_live)
    _insert(connection, db, tenant, new)


def _fingerprint(submission: Submission) -> str:
    text = json.dumps(asdict(submission), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def reserve(
    connection: Connection, db: Database, tenant: str, key: str, fingerprint: str, job_id: str
) -> str | None:
    """Take the key for ``job_id`` (or a batch's id), or return the id of what has it.

    Raises:
        IdempotencyConflictError: the key belongs to another request.
    """
    fresh = {
        "fingerprint": fingerprint,
        "job_id": job_id,
        "created_at": db.now,
        "expires_at": db.now + KEY_KEPT_S,
    }
    # A rival's uncommitted row makes this insert wait, so the select below sees its outcome.
    inserted = connection.execute(
        upsert(db, idempotency)
        .values(tenant=tenant, key=key, **fresh)
        .on_conflict_do_nothing()
        .returning(idempotency.c.key)
    ).first()
    if inserted is not None:
        return None
    mine = (idempotency.c.tenant == tenant) & (idempotency.c.key == key)
    found = connection.execute(
        select(idempotency, (idempotency.c.expires_at < db.now).label("expired"))
        .where(mine)
        .with_for_update()
    ).one()
    if found.expired:
        connection.execute(update(idempotency).where(mine).values(**fresh))
        return None
    if found.fingerprint != fingerprint:
        raise IdempotencyConflictError(f"Idempotency-Key {key!r} was used for another request.")
    return str(found.job_id)


def _check_inputs(connection: Connection, db: Database, tenant: str, new: Sequence[NewJob]) -> None:
    wanted = {artifact for job in new for artifact in job.submission.inputs.values()}
    # Shared locks: an artifact cannot vanish between this check and the commit.
    query = select(artifacts.c.id).where(
        artifacts.c.tenant == tenant,
        artifacts.c.id.in_(wanted),
        or_(artifacts.c.expires_at.is_(None), artifacts.c.expires_at > db.now),
    )
    found = set(connection.execute(query.with_for_update(read=True)).scalars())
    if missing := sorted(wanted - found):
        raise NotFoundError(f"Artifact {missing[0]} does not exist.", code="artifact_not_found")


def _check_quota(
    connection: Connection, db: Database, tenant: str, more: int, max_live: int | None
) -> None:
    if max_live is None:
        return
    if not db.sqlite:
        # One submit of a tenant at a time until the commit: rivals that count at once would all
        # find the same room. SQLite has a single writer anyway.
        lock = func.hashtextextended(f"jobs of {tenant}", 0)
        connection.execute(select(func.pg_advisory_xact_lock(lock)))
    query = select(func.count()).where(
        jobs.c.tenant == tenant, jobs.c.state.in_([s for s in State if s not in TERMINAL])
    )
    live = connection.execute(query).scalar_one()
    if live + more > max_live:
        wanted = "" if more == 1 else f", and {more} more were asked for"
        raise LimitError(
            f"{live} jobs are unfinished{wanted}; this tenant may have {max_live} at most."
        )


def _insert(connection: Connection, db: Database, tenant: str, new: Sequence[NewJob]) -> None:
    fresh = dict.fromkeys(("fence", "attempt", "failures", "resource_deaths"), 0)
    times = dict.fromkeys(("not_before", "created_at", "queued_at"), db.now)
    connection.execute(
        # The first event comes with the job: its version and its event counter begin at one.
        insert(jobs).values(
            **fresh,
            **times,
            version=1,
            last_seq=1,
            tenant=tenant,
            state=State.QUEUED,
            deadline_at=db.now + bindparam("within_s", type_=Double),
        ),
        [_row(job) for job in new],
    )
    queued = {"state": State.QUEUED, "previous": None}
    event = insert(job_events).values(seq=1, at=db.now, type="job.status", data=queued)
    connection.execute(event, [{"job_id": job.id} for job in new])
    ring = insert(outbox).values(topic="ring", payload={}, due_at=db.now)
    connection.execute(ring, [{"job_id": j.id, "queue": j.submission.queue} for j in new])
    inputs = [
        {"job_id": job.id, "name": name, "artifact_id": artifact}
        for job in new
        for name, artifact in job.submission.inputs.items()
    ]
    labels = [
        {"job_id": job.id, "tenant": tenant, "key": key, "value": value}
        for job in new
        for key, value in job.submission.labels.items()
    ]
    for table, rows in ((job_inputs, inputs), (job_labels, labels)):
        if rows:
            connection.execute(insert(table), rows)


def _row(job: NewJob) -> dict[str, Any]:
    identity = {"id": job.id, "batch_id": job.batch_id, "custom_id": job.custom_id}
    return {**asdict(job.submission), **identity, "within_s": job.submission.deadline_s}
