"""What happens to a job: a list to page through or a stream to follow, and its other records."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from stiefel_api.routes.jobs import JobId
from stiefel_api.security import JobReader
from stiefel_api.service import Service, ServiceDep
from stiefel_api.views.base import Page, problems
from stiefel_api.views.history import AttemptView, CheckpointView, EventView, PointView
from stiefel_jobs.records import Event, Job
from stiefel_jobs.states import TERMINAL
from stiefel_jobs.store import queries

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

STREAM = "text/event-stream"
KEEP_ALIVE_S = 15.0
_BATCH = 500
Many = Annotated[int, Query(ge=1, le=1000, description="Entries per page.", examples=[500])]


@router.get(
    "/events",
    response_model=Page[EventView],
    responses={
        200: {
            "description": "A page of events; or, with `Accept: text/event-stream`, all of them "
            "as they happen, until the job has ended.",
            "content": {STREAM: {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
    summary="Read or follow a job's events",
)
async def events(
    job_id: JobId,
    service: ServiceDep,
    caller: JobReader,
    after: Annotated[
        int, Query(ge=0, description="Only events with a greater `seq`.", examples=[0])
    ] = 0,
    limit: Many = 500,
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
    last_event_id: Annotated[
        str | None, Header(description="Where a stream broke off.", examples=["118"])
    ] = None,
) -> Response:
    """Events are numbered 1, 2, 3 … without a gap, so that nothing is missed after a break."""
    if STREAM in accept:
        job = await run_in_threadpool(
            queries.get_job, service.db, tenant=caller.tenant, job_id=job_id
        )
        given = last_event_id or ""
        begin = int(given) if given.isdecimal() and len(given) < 19 else after
        headers = {"X-Accel-Buffering": "no"}
        return StreamingResponse(_stream(service, job, begin), media_type=STREAM, headers=headers)
    found = await run_in_threadpool(_read, service, caller.tenant, job_id, after, limit + 1)
    views = [EventView.of(event) for event in found[:limit]]
    more = len(found) > limit
    page = Page(data=views, has_more=more, next=str(views[-1].seq) if more else None)
    return Response(page.model_dump_json(), media_type="application/json")


def _read(service: Service, tenant: str, job_id: str, after: int, limit: int) -> list[Event]:
    return queries.events(service.db, tenant=tenant, job_id=job_id, after_seq=after, limit=limit)


async def _stream(service: Service, job: Job, after: int) -> AsyncIterator[str]:
    """Send what is there, then what comes, then end with the job."""
    yield "retry: 1000\n\n"
    while True:
        found = await run_in_threadpool(_read, service, job.tenant, job.id, after, _BATCH)
        for event in found:
            after = event.seq
            yield _frame(event)
        if len(found) == _BATCH:
            continue
        if job.state in TERMINAL and after >= job.last_seq:
            return
        while not await service.waiters.changed(job.id, job.version, KEEP_ALIVE_S):
            if service.waiters.closed:
                return  # the client asks again where it was, and another process answers
            yield ": still here\n\n"
        job = await run_in_threadpool(queries.get_job, service.db, tenant=job.tenant, job_id=job.id)


def _frame(event: Event) -> str:
    return f"id: {event.seq}\nevent: {event.type}\ndata: {json.dumps(event.data)}\n\n"


@router.get(
    "/metrics",
    response_model=Page[PointView],
    responses=problems(404),
    summary="Read a job's metrics",
)
def metrics(
    job_id: JobId,
    service: ServiceDep,
    caller: JobReader,
    name: Annotated[
        str | None, Query(description="Only this series.", examples=["train.loss"])
    ] = None,
    after: Annotated[
        str | None,
        Query(
            pattern=r"^\d{1,18}:.{1,255}$",
            description="The `next` of the page before.",
            examples=["400:train.loss"],
        ),
    ] = None,
    limit: Many = 1000,
) -> Page[PointView]:
    """Points of all series by step, then name."""
    step, _, last = (after or "").partition(":")
    points = queries.metrics(
        service.db,
        tenant=caller.tenant,
        job_id=job_id,
        name=name,
        after=(int(step), last) if after else None,
        limit=limit + 1,
    )
    views = [PointView.of(point) for point in points[:limit]]
    more = len(points) > limit
    cursor = f"{views[-1].step}:{views[-1].name}" if more else None
    return Page(data=views, has_more=more, next=cursor)


@router.get(
    "/attempts",
    response_model=Page[AttemptView],
    responses=problems(404),
    summary="Read a job's attempts",
)
def attempts(job_id: JobId, service: ServiceDep, caller: JobReader) -> Page[AttemptView]:
    """Who tried, from where, and how each attempt ended."""
    found = queries.attempts(service.db, tenant=caller.tenant, job_id=job_id)
    return Page(data=[AttemptView.of(item) for item in found], has_more=False, next=None)


@router.get(
    "/checkpoints",
    response_model=Page[CheckpointView],
    responses=problems(404),
    summary="Read a job's checkpoints",
)
def checkpoints(job_id: JobId, service: ServiceDep, caller: JobReader) -> Page[CheckpointView]:
    """Where the job would continue, oldest first, and the files of each."""
    found = queries.checkpoints(service.db, tenant=caller.tenant, job_id=job_id)
    views = [CheckpointView.of(item, job_id=job_id) for item in found]
    return Page(data=views, has_more=False, next=None)
