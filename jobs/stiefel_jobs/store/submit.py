"""Accept a job: the job, its first event, its place in the outbox, and its idempotency key."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, func, insert, or_, select, update

from stiefel_jobs.database import Database
from stiefel_jobs.errors import IdempotencyConflictError, LimitError, NotFoundError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import NewEvent, Submission, Submitted
from stiefel_jobs.states import TERMINAL, State
from stiefel_jobs.store.changes import enqueue_ring, read_job, tell, upsert
from stiefel_jobs.tables import artifacts, idempotency, job_inputs, job_labels, jobs

KEY_KEPT_S = 7 * 86400.0


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
            winner = _reserve(connection, db, tenant, idempotency_key, fingerprint, job_id)
            if winner is not None:
                return Submitted(read_job(connection, winner), replayed=True)
        _check_inputs(connection, db, tenant, submission)
        _check_quota(connection, tenant, max_live)
        _insert(connection, db, tenant, submission, job_id)
        enqueue_ring(connection, db, queue=submission.queue, job_id=job_id)
        return Submitted(read_job(connection, job_id), replayed=False)


def _fingerprint(submission: Submission) -> str:
    text = json.dumps(asdict(submission), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _reserve(
    connection: Connection, db: Database, tenant: str, key: str, fingerprint: str, job_id: str
) -> str | None:
    """Take the key for ``job_id``, or return the id of the job that has it."""
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


def _check_inputs(
    connection: Connection, db: Database, tenant: str, submission: Submission
) -> None:
    wanted = set(submission.inputs.values())
    # Shared locks: an artifact cannot vanish between this check and the commit.
    query = select(artifacts.c.id).where(
        artifacts.c.tenant == tenant,
        artifacts.c.id.in_(wanted),
        or_(artifacts.c.expires_at.is_(None), artifacts.c.expires_at > db.now),
    )
    found = set(connection.execute(query.with_for_update(read=True)).scalars())
    if missing := sorted(wanted - found):
        raise NotFoundError(f"Artifact {missing[0]} does not exist.", code="artifact_not_found")


def _check_quota(connection: Connection, tenant: str, max_live: int | None) -> None:
    if max_live is None:
        return
    query = select(func.count()).where(
        jobs.c.tenant == tenant, jobs.c.state.in_([s for s in State if s not in TERMINAL])
    )
    if connection.execute(query).scalar_one() >= max_live:
        raise LimitError(f"{max_live} jobs are unfinished, the most this tenant may have.")


def _insert(
    connection: Connection, db: Database, tenant: str, submission: Submission, job_id: str
) -> None:
    values: dict[str, Any] = asdict(submission)
    deadline = submission.deadline_s
    counters = ("version", "last_seq", "fence", "attempt", "failures", "resource_deaths")
    connection.execute(
        insert(jobs).values(
            **values,
            **dict.fromkeys(counters, 0),
            id=job_id,
            tenant=tenant,
            state=State.QUEUED,
            deadline_at=None if deadline is None else db.now + deadline,
            not_before=db.now,
            created_at=db.now,
            queued_at=db.now,
        )
    )
    for table, rows in (
        (job_inputs, [{"name": n, "artifact_id": a} for n, a in submission.inputs.items()]),
        (
            job_labels,
            [{"tenant": tenant, "key": k, "value": v} for k, v in submission.labels.items()],
        ),
    ):
        if rows:
            connection.execute(insert(table).values(job_id=job_id), rows)
    event = NewEvent("job.status", {"state": State.QUEUED, "previous": None})
    tell(connection, db, job_id, [event])
