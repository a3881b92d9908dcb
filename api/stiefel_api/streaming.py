"""Server-sent events: a job's events and points as they happen, until the job has ended."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import NamedTuple, Self

from starlette.concurrency import run_in_threadpool

from stiefel_api.security import Caller
from stiefel_api.service import Service
from stiefel_jobs.records import Event, Job, Point
from stiefel_jobs.states import TERMINAL
from stiefel_jobs.store import keys, queries

KEEP_ALIVE_S = 15.0
_BATCH = 500
_RETRY = "retry: 1000\n\n"
_ALIVE = ": still here\n\n"


def stream_events(service: Service, caller: Caller, job: Job, after: int) -> AsyncIterator[str]:
    """Send what is there, then what comes, then end with the job."""

    def read() -> list[str]:
        nonlocal after
        found: list[Event] = queries.events(
            service.db, tenant=job.tenant, job_id=job.id, after_seq=after, limit=_BATCH
        )
        after = found[-1].seq if found else after
        return [_frame(str(event.seq), event.type, event.data) for event in found]

    return _follow(service, caller, job, read)


class PointCursor(NamedTuple):
    """Where a stream of points stands: the last one sent."""

    at: float = 0.0
    step: int = 0
    name: str = ""

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Read a ``Last-Event-ID``; whatever is none begins at the start."""
        found = re.fullmatch(r"(\d{1,12}(?:\.\d{1,9})?):(\d{1,18}):(.{1,255})", text or "")
        return cls(float(found[1]), int(found[2]), found[3]) if found else cls()

    def __str__(self) -> str:
        return f"{self.at!r}:{self.step}:{self.name}"


def stream_points(
    service: Service, caller: Caller, job: Job, after: PointCursor, *, name: str | None
) -> AsyncIterator[str]:
    """Send every point in the order of its report; one that is reported again comes again."""

    def read() -> list[str]:
        nonlocal after
        found: list[Point] = queries.metrics_since(
            service.db, tenant=job.tenant, job_id=job.id, name=name, after=after, limit=_BATCH
        )
        frames = []
        for point in found:
            after = PointCursor(point.at or 0.0, point.step, point.name)
            data = {"name": point.name, "step": point.step, "value": point.value, "at": point.at}
            frames.append(_frame(str(after), "job.metric", data))
        return frames

    return _follow(service, caller, job, read)


async def _follow(
    service: Service, caller: Caller, job: Job, read: Callable[[], list[str]]
) -> AsyncIterator[str]:
    """Send what ``read`` finds, again after every change of the job, until the job is over.

    ``read`` returns up to ``_BATCH`` frames that it has not returned before. The stream ends
    early, for the client to ask again, when the process stops or the key no longer holds.
    """
    yield _RETRY
    asked = time.monotonic()
    while True:
        over = job.state in TERMINAL  # seen before the read: nothing can be missed
        frames = await run_in_threadpool(read)
        for frame in frames:
            yield frame
        if len(frames) == _BATCH:
            continue
        if over:
            return
        changed = False
        while not changed:
            changed = await service.waiters.changed(job.id, job.version, KEEP_ALIVE_S)
            if service.waiters.closed:
                return
            if time.monotonic() - asked >= KEEP_ALIVE_S:
                if not await run_in_threadpool(_holds, service, caller):
                    return
                asked = time.monotonic()
            if not changed:
                yield _ALIVE
        job = await run_in_threadpool(queries.get_job, service.db, tenant=job.tenant, job_id=job.id)


def _holds(service: Service, caller: Caller) -> bool:
    """Whether the key that opened a stream is still neither revoked nor expired."""
    if caller.key is None:
        return True
    known = keys.list_keys(service.db, tenant=caller.tenant)
    now = time.time()
    return any(
        key.id == caller.key.id
        and key.revoked_at is None
        and (key.expires_at is None or key.expires_at > now)
        for key in known
    )


def _frame(id: str, type: str, data: object) -> str:  # noqa: A002 - the words of the format
    return f"id: {id}\nevent: {type}\ndata: {json.dumps(data)}\n\n"
