"""How an attempt ends, and whether the job gets another one. Inside a caller's transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, update

from stiefel_jobs.database import Database
from stiefel_jobs.records import NewEvent
from stiefel_jobs.states import Blame, State
from stiefel_jobs.store.changes import change, tell
from stiefel_jobs.tables import attempts

#: A job that twice died for want of memory will do so again: say so instead of trying on.
MAX_RESOURCE_DEATHS = 2
_BACKOFF_S = 1.0
_BACKOFF_LIMIT_S = 30.0

WORKER_LOST = "worker_lost"
_LOST_ERROR = {
    "code": WORKER_LOST,
    "detail": "The worker disappeared and its lease ran out.",
    "fix": "Retry the job; if it happens again, look at the worker's log and memory.",
}


def end_attempt(
    connection: Connection,
    db: Database,
    row: Row[Any],
    *,
    reason: str,
    blame: Blame | None = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    """Close the locked job's present attempt and tell its event stream why."""
    connection.execute(
        update(attempts)
        .where(attempts.c.job_id == row.id, attempts.c.number == row.attempt)
        .values(ended_at=db.now, reason=reason, blame=blame, error=dict(error) if error else None)
    )
    data = {"number": row.attempt, "worker": row.worker, "ended_because": reason, "blame": blame}
    tell(connection, db, row.id, [NewEvent("job.attempt", data)])


def give_up(
    connection: Connection,
    db: Database,
    row: Row[Any],
    *,
    reason: str,
    blame: Blame,
    error: Mapping[str, Any],
    **values: Any,
) -> State:
    """Fail the job for good."""
    data: dict[str, Any] = {"reason": reason, "blame": blame, "error": dict(error)}
    change(connection, db, row, State.FAILED, data=data, **data, **values)
    return State.FAILED


def again_or_fail(
    connection: Connection,
    db: Database,
    row: Row[Any],
    *,
    reason: str,
    blame: Blame,
    error: Mapping[str, Any],
    backoff: bool = True,
    ring: bool = True,
) -> State:
    """Count the failure, then queue the job again or, its budget spent, fail it."""
    failures = row.failures + 1
    deaths = row.resource_deaths + (blame is Blame.RESOURCE)
    counts = {"failures": failures, "resource_deaths": deaths}
    if deaths >= MAX_RESOURCE_DEATHS or failures >= row.max_attempts:
        return give_up(connection, db, row, reason=reason, blame=blame, error=error, **counts)
    if row.state == State.PAUSING:
        change(connection, db, row, State.PAUSED, data={"reason": reason}, **counts)
        return State.PAUSED
    delay = min(_BACKOFF_S * 2 ** (failures - 1), _BACKOFF_LIMIT_S) if backoff else 0.0
    change(
        connection,
        db,
        row,
        State.QUEUED,
        data={"reason": reason, "retry_in_s": delay},
        ring=ring,
        not_before=db.now + delay,
        **counts,
    )
    return State.QUEUED


def lose(connection: Connection, db: Database, row: Row[Any], *, ring: bool = True) -> State:
    """Settle a locked job whose lease has run out, as its owner wished; return the new state.

    No backoff: nothing says that the job was at fault, and ``max_attempts`` bounds the damage.
    """
    end_attempt(connection, db, row, reason=WORKER_LOST, blame=Blame.SYSTEM)
    if row.state == State.CANCELLING:
        change(connection, db, row, State.CANCELLED, data={"reason": WORKER_LOST})
        return State.CANCELLED
    if row.state == State.PAUSING:
        change(connection, db, row, State.PAUSED, data={"reason": WORKER_LOST})
        return State.PAUSED
    return again_or_fail(
        connection,
        db,
        row,
        reason=WORKER_LOST,
        blame=Blame.SYSTEM,
        error=_LOST_ERROR,
        backoff=False,
        ring=ring,
    )
