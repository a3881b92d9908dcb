"""A job over time: its version as an ETag, and waiting for the next one."""

from __future__ import annotations

import time
from collections.abc import Mapping

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from stiefel_api.service import Service
from stiefel_api.views.jobs import JobView, QueueView
from stiefel_jobs.batch_records import Batch
from stiefel_jobs.records import Job
from stiefel_jobs.states import TERMINAL, State
from stiefel_jobs.store import queries
from stiefel_jobs.store.workers import list_workers

LOOK_AGAIN_S = 1


def etag(job: Job | Batch) -> str:
    """Return the version of the job or batch as HTTP has it."""
    return f'"{job.version}"'


def job_response(
    service: Service,
    job: Job,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    seen: str | None = None,
) -> Response:
    """Show a job, or say 304 where the caller has seen this version."""
    given = {"ETag": etag(job), **(headers or {})}
    if job.state not in TERMINAL:
        given["Retry-After"] = str(LOOK_AGAIN_S)
    if is_seen(etag(job), seen):
        return Response(status_code=304, headers=given)
    view = JobView.of(job, queue=_queue(service, job))
    return Response(view.model_dump_json(), status, headers=given, media_type="application/json")


async def wait_for_change(service: Service, job: Job, *, seen: str | None, seconds: float) -> Job:
    """Return the job once it is not the version that was seen, or when the time is over."""
    if job.state in TERMINAL or (seen is not None and not is_seen(etag(job), seen)):
        return job
    if not await service.waiters.changed(job.id, job.version, seconds):
        return job
    return await _again(service, job)


async def wait_for_batch(
    service: Service, batch: Batch, *, seen: str | None, seconds: float
) -> None:
    """Return once a job of the batch is not as it was seen, or when the time is over."""
    if not batch.finished and (seen is None or is_seen(etag(batch), seen)):
        await service.waiters.changed(batch.id, batch.version, seconds)


async def settle(service: Service, job: Job, *, seconds: float) -> Job:
    """Return the job once it has ended, or when the time is over."""
    end = time.monotonic() + seconds
    while job.state not in TERMINAL:
        left = end - time.monotonic()
        if left <= 0 or not await service.waiters.changed(job.id, job.version, left):
            break
        job = await _again(service, job)
    return job


async def _again(service: Service, job: Job) -> Job:
    return await run_in_threadpool(queries.get_job, service.db, tenant=job.tenant, job_id=job.id)


def is_seen(tag: str, seen: str | None) -> bool:
    """Say whether ``If-None-Match`` names this version."""
    return seen is not None and tag in [each.strip().removeprefix("W/") for each in seen.split(",")]


def _queue(service: Service, job: Job) -> QueueView | None:
    if job.state is not State.QUEUED:
        return None
    return QueueView(
        name=job.queue,
        position=queries.position(service.db, tenant=job.tenant, job_id=job.id),
        workers=len(list_workers(service.db, queue=job.queue)),
    )
