"""What a running job reports: progress, metrics, events and checkpoints, all under the fence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, Row, delete, func, insert, select

from stiefel_jobs.database import Database
from stiefel_jobs.records import Blob, NewEvent, Point, Progress, StateFile
from stiefel_jobs.store.changes import keep_blobs, tell, under_fence, upsert
from stiefel_jobs.tables import checkpoint_segments, checkpoints, metrics

#: The newest checkpoint, and one before it should its bytes turn out to be damaged.
KEPT_CHECKPOINTS = 2


def record(
    db: Database,
    *,
    job_id: str,
    fence: int,
    progress: Progress | None = None,
    metrics: Sequence[Point] = (),
    events: Sequence[NewEvent] = (),
) -> None:
    """Write what the job has to tell, in one transaction. Callers throttle.

    A point with the name and step of an earlier one replaces it: an attempt that resumed from a
    checkpoint repeats steps, and the later attempt is the one whose weights will be delivered.

    Raises:
        StaleFenceError: the job has moved on.
    """
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        _write_points(connection, db, job_id, metrics)
        values = {} if progress is None else _progress_values(db, row, progress)
        tell(connection, db, job_id, events, progress_at=db.now, **values)


def _progress_values(db: Database, row: Row[Any], progress: Progress) -> dict[str, Any]:
    values: dict[str, Any] = {"progress": asdict(progress)}
    before = row.progress or {}
    same = all(before.get(key) == values["progress"][key] for key in ("stage", "unit", "total"))
    if row.base_at is None or not same:
        # The rate of this stage counts from here; what an earlier attempt did is not its speed.
        values |= {"base_done": progress.done, "base_at": db.now}
    return values


def _write_points(
    connection: Connection, db: Database, job_id: str, points: Sequence[Point]
) -> None:
    latest = {(point.step, point.name): _finite(point.value) for point in points}
    if not latest:
        return
    statement = upsert(db, metrics).values(job_id=job_id, at=db.now)
    statement = statement.on_conflict_do_update(
        index_elements=[metrics.c.job_id, metrics.c.step, metrics.c.name],
        set_={"value": statement.excluded.value, "at": db.now},
    )
    connection.execute(
        statement,
        [{"step": step, "name": name, "value": value} for (step, name), value in latest.items()],
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def checkpoint(
    db: Database, *, job_id: str, fence: int, step: int, files: Sequence[StateFile]
) -> None:
    """Make ``files``, whose segments are in the store already, the place to continue from.

    Raises:
        StaleFenceError: the job has moved on.
    """
    size = sum(file.size for file in files)
    with db.write() as connection:
        row = under_fence(connection, job_id=job_id, fence=fence)
        number = _next_number(connection, job_id)
        segments = [Blob(s.sha256, s.size) for file in files for s in file.segments]
        keep_blobs(connection, db, row.tenant, segments)
        connection.execute(
            insert(checkpoints).values(
                job_id=job_id,
                number=number,
                step=step,
                fence=fence,
                attempt=row.attempt,
                size=size,
                files=[asdict(file) for file in files],
                created_at=db.now,
            )
        )
        _prune(connection, job_id, row.tenant, newest=number)
        data = {"number": number, "step": step, "bytes": size}
        tell(connection, db, job_id, [NewEvent("job.checkpoint", data)], progress_at=db.now)


def _next_number(connection: Connection, job_id: str) -> int:
    newest = select(func.max(checkpoints.c.number)).where(checkpoints.c.job_id == job_id)
    return (connection.execute(newest).scalar() or 0) + 1


def _prune(connection: Connection, job_id: str, tenant: str, *, newest: int) -> None:
    """Drop all but the kept checkpoints, and hold on to exactly the segments these need."""
    connection.execute(
        delete(checkpoints).where(
            checkpoints.c.job_id == job_id, checkpoints.c.number <= newest - KEPT_CHECKPOINTS
        )
    )
    query = select(checkpoints.c.files).where(checkpoints.c.job_id == job_id)
    needed = {
        segment["sha256"]
        for files in connection.execute(query).scalars()
        for file in files
        for segment in file["segments"]
    }
    mine = checkpoint_segments.c.job_id == job_id
    held = set(connection.execute(select(checkpoint_segments.c.sha256).where(mine)).scalars())
    for digest in held - needed:
        connection.execute(
            delete(checkpoint_segments).where(mine, checkpoint_segments.c.sha256 == digest)
        )
    if fresh := sorted(needed - held):
        connection.execute(
            insert(checkpoint_segments).values(job_id=job_id, tenant=tenant),
            [{"sha256": digest} for digest in fresh],
        )


def drop_checkpoints(connection: Connection, job_id: str) -> None:
    """Forget a job's checkpoints; the garbage collector takes their bytes later."""
    for table in (checkpoint_segments, checkpoints):
        connection.execute(delete(table).where(table.c.job_id == job_id))
