"""How a worker lets go of a job: delivered, failed, or handed back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from stiefel_jobs.database import Database
from stiefel_jobs.errors import ActionNotAllowedError, StaleFenceError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import Blob, Job, NewArtifact
from stiefel_jobs.states import Blame, State, allowed_actions
from stiefel_jobs.store.attempts import again_or_fail, end_attempt, give_up
from stiefel_jobs.store.changes import change, keep_blobs, read_job, under_fence
from stiefel_jobs.store.progress import drop_checkpoints
from stiefel_jobs.store.workers import largest_share, too_large
from stiefel_jobs.tables import artifacts as artifacts_table
from stiefel_jobs.tables import jobs


def begin_finalizing(db: Database, *, job_id: str, fence: int) -> State:
    """Announce that the work is done and the results are being stored.

    Returns FINALIZING, from where the job can no longer be cancelled or paused, or the wish that
    came first: PAUSING or CANCELLING.

    Raises:
        StaleFenceError: the job has moved on.
    """
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        if row.state != State.RUNNING:
            return State(row.state)
        change(connection, db, row, State.FINALIZING)
        return State.FINALIZING


def finish(
    db: Database,
    *,
    job_id: str,
    fence: int,
    artifacts: Sequence[NewArtifact],
    result: Mapping[str, Any],
    keep_checkpoints: bool = False,
) -> Job:
    """Commit the results, whose bytes are in the store already: exactly once, or not at all.

    The job's ``result`` is ``{"files": {name: {artifact, sha256, bytes, kind}}, **result}``.
    With ``keep_checkpoints`` the last ones stay as long as those of a failed job.

    Raises:
        StaleFenceError: the job has moved on, or ``begin_finalizing`` did not come first.
    """
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        if row.state != State.FINALIZING:
            raise StaleFenceError(f"Job {job_id} is {row.state}, not finalizing.")
        files = _insert_artifacts(connection, db, row, artifacts)
        if not keep_checkpoints:
            drop_checkpoints(connection, job_id)
        end_attempt(connection, db, row, reason="succeeded")
        outcome = {"files": files, **result}
        change(connection, db, row, State.SUCCEEDED, result=outcome, reason=None)
        return read_job(connection, job_id)


def _insert_artifacts(
    connection: Connection, db: Database, row: Row[Any], new: Sequence[NewArtifact]
) -> dict[str, dict[str, Any]]:
    keep_blobs(connection, db, row.tenant, [Blob(item.sha256, item.size) for item in new])
    files: dict[str, dict[str, Any]] = {}
    for item in new:
        artifact_id = new_id("art")
        connection.execute(
            insert(artifacts_table).values(
                id=artifact_id,
                tenant=row.tenant,
                kind=item.kind,
                name=item.name,
                sha256=item.sha256,
                size=item.size,
                meta=dict(item.meta),
                job_id=row.id,
                created_at=db.now,
                expires_at=None if row.output_ttl_s is None else db.now + row.output_ttl_s,
            )
        )
        files[item.name] = {
            "artifact": artifact_id,
            "sha256": item.sha256,
            "bytes": item.size,
            "kind": item.kind,
        }
    return files


def fail(
    db: Database,
    *,
    job_id: str,
    fence: int,
    reason: str,
    blame: Blame,
    error: Mapping[str, Any],
    retry: bool,
) -> State:
    """End the attempt as failed; return QUEUED (to try again), FAILED, PAUSED or CANCELLED.

    ``retry`` asks for another attempt, which the caller's own mistakes never get. A second death
    with ``Blame.RESOURCE`` fails the job: let ``error`` carry the figure, e.g. ``peak_bytes``.

    Raises:
        StaleFenceError: the job has moved on.
    """
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        end_attempt(connection, db, row, reason=reason, blame=blame, error=error)
        if row.state == State.CANCELLING:
            change(connection, db, row, State.CANCELLED, data={"reason": reason})
            return State.CANCELLED
        settle = again_or_fail if retry and blame is not Blame.USER else give_up
        return settle(connection, db, row, reason=reason, blame=blame, error=error)


def outgrow(db: Database, *, job_id: str, fence: int, needed: int, share: int) -> State:
    """End an attempt that would need more memory than its worker's ``share``, before it began.

    Where another worker is large enough the job waits for it, at no cost to its attempts, and
    nobody smaller takes it again; else it fails with both figures. Returns the state it is in now.

    Raises:
        StaleFenceError: the job has moved on.
    """
    with db.read() as connection:
        queue = connection.execute(select(jobs.c.queue).where(jobs.c.id == job_id)).scalar_one()
    largest = max(share, largest_share(db, queue) or 0)
    error = too_large(needed, largest)
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        end_attempt(connection, db, row, reason=error["code"], blame=Blame.RESOURCE, error=error)
        kept: dict[str, Any] = {"peak_memory_bytes": needed}
        if row.state == State.CANCELLING:
            change(connection, db, row, State.CANCELLED, data={"reason": error["code"]}, **kept)
            return State.CANCELLED
        if needed > largest:
            return give_up(
                connection,
                db,
                row,
                reason=error["code"],
                blame=Blame.RESOURCE,
                error=error,
                **kept,
            )
        target = State.PAUSED if row.state == State.PAUSING else State.QUEUED
        data = {"reason": error["code"], "needed_bytes": needed}
        change(connection, db, row, target, data=data, **kept, **_due(db, target))
        return target


def release(db: Database, *, job_id: str, fence: int, to: State, reason: str) -> State:
    """Hand the job back unfinished, costing it no attempt; return the state it is in now.

    ``to`` is PAUSED or CANCELLED in answer to that wish, or QUEUED when the worker shuts down. A
    wish of the owner that came in between prevails: a cancelled job is not queued again.

    Raises:
        StaleFenceError: the job has moved on.
        ActionNotAllowedError: nobody wished for the job to be paused or cancelled.
    """
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        target = _release_target(State(row.state), to)
        end_attempt(connection, db, row, reason=reason)
        change(connection, db, row, target, data={"reason": reason}, **_due(db, target))
        return target


def _release_target(state: State, to: State) -> State:
    if state is State.CANCELLING:
        return State.CANCELLED
    if state is State.PAUSING and to is not State.CANCELLED:
        return State.PAUSED
    if state in {State.RUNNING, State.FINALIZING} and to is State.QUEUED:
        return State.QUEUED
    raise ActionNotAllowedError(
        f"A {state} job cannot be released as {to}.", allowed=allowed_actions(state)
    )


def _due(db: Database, target: State) -> dict[str, Any]:
    return {"not_before": db.now} if target is State.QUEUED else {}
