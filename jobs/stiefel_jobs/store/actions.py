"""What the owner of a job may ask for. Asking twice is as good as asking once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from stiefel_jobs.database import Database
from stiefel_jobs.errors import ActionNotAllowedError
from stiefel_jobs.records import Job
from stiefel_jobs.states import State, allowed_actions
from stiefel_jobs.store.changes import change, owned, read_job

# Per verb: from which state to which. The states listed under _DONE have what the verb wants.
_MOVES: dict[str, dict[State, State]] = {
    "cancel": {
        State.QUEUED: State.CANCELLED,
        State.PAUSED: State.CANCELLED,
        State.RUNNING: State.CANCELLING,
        State.PAUSING: State.CANCELLING,
    },
    "pause": {State.QUEUED: State.PAUSED, State.RUNNING: State.PAUSING},
    "resume": {State.PAUSED: State.QUEUED},
    "retry": {State.FAILED: State.QUEUED, State.CANCELLED: State.QUEUED},
}
_DONE: dict[str, frozenset[State]] = {
    "cancel": frozenset({State.CANCELLING, State.CANCELLED}),
    "pause": frozenset({State.PAUSING, State.PAUSED}),
    "resume": frozenset({State.QUEUED, State.RUNNING}),
    "retry": frozenset({State.QUEUED, State.RUNNING}),
}


def cancel(db: Database, *, tenant: str, job_id: str) -> Job:
    """Cancel: at once while no worker holds the job, otherwise as soon as it lets go.

    Raises:
        NotFoundError: the tenant has no such job.
        ActionNotAllowedError: the job is finalizing or over.
    """
    return _act(db, "cancel", tenant, job_id)


def pause(db: Database, *, tenant: str, job_id: str) -> Job:
    """Pause: at once while queued; a running job stops at its next safe point.

    Raises:
        NotFoundError: the tenant has no such job.
        ActionNotAllowedError: the job is cancelling, finalizing or over.
    """
    return _act(db, "pause", tenant, job_id)


def resume(db: Database, *, tenant: str, job_id: str) -> Job:
    """Queue a paused job again; it continues from its last checkpoint.

    Raises:
        NotFoundError: the tenant has no such job.
        ActionNotAllowedError: the job is not paused.
    """
    return _act(db, "resume", tenant, job_id)


def retry(db: Database, *, tenant: str, job_id: str) -> Job:
    """Queue a failed or cancelled job with a fresh budget of attempts and of time.

    It continues from its last checkpoint.

    Raises:
        NotFoundError: the tenant has no such job.
        ActionNotAllowedError: the job is neither failed nor cancelled.
    """
    return _act(db, "retry", tenant, job_id)


def _act(db: Database, verb: str, tenant: str, job_id: str) -> Job:
    with db.write() as connection:
        row = owned(connection, tenant=tenant, job_id=job_id)
        state = State(row.state)
        target = _MOVES[verb].get(state)
        if target is not None:
            values = _values(db, verb, row, target)
            change(connection, db, row, target, data={"action": verb}, **values)
        elif state not in _DONE[verb]:
            raise ActionNotAllowedError(
                f"A job that is {state} takes no {verb}.", allowed=allowed_actions(state)
            )
        return read_job(connection, job_id)


def _values(db: Database, verb: str, row: Row[Any], target: State) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if target is State.QUEUED:
        values |= {"queued_at": db.now, "not_before": db.now}
    if verb == "retry":
        values |= dict.fromkeys(("failures", "resource_deaths"), 0)
        values |= dict.fromkeys(("error", "blame", "reason", "finished_at"))
        if row.deadline_s is not None:
            values["deadline_at"] = db.now + row.deadline_s
    return values
