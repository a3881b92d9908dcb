"""What happens to a job: a list to page through or a stream to follow, and its other records."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from stiefel_api.routes.jobs import JobId
from stiefel_api.security import JobReader
from stiefel_api.service import Service, ServiceDep
from stiefel_api.streaming import PointCursor, stream_events, stream_points
from stiefel_api.views.base import Page, problems
from stiefel_api.views.history import (
    AttemptView,
    CheckpointView,
    EventView,
    PointView,
    step_of,
)
from stiefel_jobs.store import queries

router = APIRouter(prefix="/v1/jobs/{job_id}", tags=["jobs"])

STREAM = "text/event-stream"
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
        int,
        Query(ge=0, le=2**63 - 1, description="Only events with a greater `seq`.", examples=[0]),
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
        return StreamingResponse(
            stream_events(service, caller, job, begin), media_type=STREAM, headers=headers
        )
    found = await run_in_threadpool(
        queries.events,
        service.db,
        tenant=caller.tenant,
        job_id=job_id,
        after_seq=after,
        limit=limit + 1,
    )
    views = [EventView.of(event) for event in found[:limit]]
    more = len(found) > limit
    page = Page(data=views, has_more=more, next=str(views[-1].seq) if more else None)
    return Response(page.model_dump_json(), media_type="application/json")


@router.get(
    "/metrics",
    response_model=Page[PointView],
    responses={
        200: {
            "description": "A page of points; or, with `Accept: text/event-stream`, all of them "
            "in the order in which they were reported, until the job has ended.",
            "content": {STREAM: {"schema": {"type": "string"}}},
        },
        **problems(404),
    },
    summary="Read or follow a job's metrics",
)
async def metrics(
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
    accept: Annotated[str, Header(include_in_schema=False)] = "*/*",
    last_event_id: Annotated[
        str | None,
        Header(description="Where a stream broke off.", examples=["1790000000.5:400:train.loss"]),
    ] = None,
) -> Response:
    """Points of all series by step, then name."""
    if STREAM in accept:
        job = await run_in_threadpool(
            queries.get_job, service.db, tenant=caller.tenant, job_id=job_id
        )
        headers = {"X-Accel-Buffering": "no"}
        begin = PointCursor.parse(last_event_id)
        points = stream_points(service, caller, job, begin, name=name)
        return StreamingResponse(points, media_type=STREAM, headers=headers)
    page = await run_in_threadpool(_points, service, caller.tenant, job_id, name, after, limit)
    return Response(page.model_dump_json(), media_type="application/json")


def _points(
    service: Service, tenant: str, job_id: str, name: str | None, after: str | None, limit: int
) -> Page[PointView]:
    step, _, last = (after or "").partition(":")
    points = queries.metrics(
        service.db,
        tenant=tenant,
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
    steps = {step for item in found for file in item.files if (step := step_of(file.path))}
    known = queries.metrics_at(service.db, tenant=caller.tenant, job_id=job_id, steps=steps)
    views = [CheckpointView.of(item, job_id=job_id, metrics=known) for item in found]
    return Page(data=views, has_more=False, next=None)
