"""``/v1/jobs``: ask for work, watch it, steer it."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from stiefel_api.accepting import IdempotencyKey, accept
from stiefel_api.checks import check
from stiefel_api.cursors import AfterId, Limit
from stiefel_api.following import job_response, settle, wait_for_change
from stiefel_api.problems import Problem
from stiefel_api.security import JobReader, JobWriter
from stiefel_api.service import ServiceDep
from stiefel_api.views.base import BATCH_EXAMPLE, JOB_EXAMPLE, Page, problems
from stiefel_api.views.history import PlanView
from stiefel_api.views.jobs import JobPatch, JobView, NewJob
from stiefel_jobs.states import PRIORITIES, State
from stiefel_jobs.store import queries
from stiefel_jobs.store.amend import amend

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="Id of the job.", examples=[JOB_EXAMPLE])]
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,3})(?:$|[,;\s])")
_VERSION = re.compile(r'"?([0-9]{1,18})"?')
_LIVE = {"description": "The job; `Retry-After` says when to look again while it is live."}


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses={
        200: {"model": PlanView, "description": "With `dry_run`: what the job would do."},
        202: {
            "description": "Accepted and committed.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The job."},
                "Retry-After": {"schema": {"type": "string"}, "description": "Seconds."},
                "ETag": {"schema": {"type": "string"}, "description": "Its version."},
                "Idempotency-Replayed": {
                    "schema": {"type": "string"},
                    "description": "`true` when an earlier request had made it.",
                },
            },
        },
        **problems(400, 404, 413, 415, 429),
    },
    summary="Submit a job",
)
async def create(
    body: NewJob,
    request: Request,
    service: ServiceDep,
    caller: JobWriter,
    dry_run: Annotated[
        bool, Query(description="Check and plan, but make no job.", examples=[False])
    ] = False,
    idempotency_key: IdempotencyKey = None,
    prefer: Annotated[
        str | None,
        Header(
            description="`wait=30`: answer when the job has ended, or after so many seconds.",
            examples=["wait=30"],
        ),
    ] = None,
) -> Response:
    """Check the spec against the headers of its input files, then queue the job.

    The answer comes after the commit: what is accepted will be done.
    """
    if dry_run:
        checked = await run_in_threadpool(
            check, service, caller.tenant, body.spec, device=body.device, admit=False
        )
        return Response(checked.view().model_dump_json(), media_type="application/json")
    trace = request.headers.get("traceparent")
    submitted = await run_in_threadpool(
        accept, service, caller.tenant, body, key=idempotency_key, traceparent=trace
    )
    job = submitted.job
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    wait = _WAIT.search(prefer or "")
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait[1]}"
        job = await settle(service, job, seconds=int(wait[1]))
    return await run_in_threadpool(job_response, service, job, status=202, headers=headers)


@router.get("", response_model=Page[JobView], responses=problems(), summary="List jobs")
def list_all(
    service: ServiceDep,
    caller: JobReader,
    status: Annotated[
        list[State] | None, Query(description="Any of these.", examples=[["queued", "running"]])
    ] = None,
    label: Annotated[
        list[str] | None,
        Query(description="All of these, `name=value` or `name:value`.", examples=[["team=nlp"]]),
    ] = None,
    batch: Annotated[
        str | None, Query(max_length=64, description="Of this batch.", examples=[BATCH_EXAMPLE])
    ] = None,
    after: AfterId = None,
    limit: Limit = 50,
) -> Page[JobView]:
    """Newest first."""
    page = queries.list_jobs(
        service.db,
        tenant=caller.tenant,
        states=status or (),
        labels=dict(_label(text) for text in label or ()),
        batch_id=batch,
        after=after,
        limit=limit,
    )
    views = [JobView.of(job) for job in page.items]
    return Page(data=views, has_more=page.next is not None, next=page.next)


def _label(text: str) -> tuple[str, str]:
    # Whichever separator comes first: the value may hold the other one, as in image=repo:tag.
    parts = re.split("[=:]", text, maxsplit=1)
    if len(parts) == 2 and parts[0]:
        return parts[0], parts[1]
    raise Problem(
        422,
        "label_malformed",
        f"The label {text[:100]!r} is not of the form name=value.",
        fix="Write ?label=team=nlp, once per label.",
        errors=[{"parameter": "label", "in": "query", "message": "not name=value"}],
    )


@router.get(
    "/{job_id}",
    response_model=JobView,
    responses={
        200: _LIVE,
        304: {"description": "Unchanged since the version in `If-None-Match`."},
        **problems(404),
    },
    summary="Look at a job",
)
async def read(
    job_id: JobId,
    service: ServiceDep,
    caller: JobReader,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            description="Seconds to hold the answer back until the job changes: from the "
            "version in `If-None-Match`, or from now.",
            examples=[50],
        ),
    ] = 0,
    if_none_match: Annotated[
        str | None, Header(description="The `ETag` seen last.", examples=['"7"'])
    ] = None,
) -> Response:
    """Answer the job as it is, or, with `wait`, as soon as it has changed."""
    job = await run_in_threadpool(queries.get_job, service.db, tenant=caller.tenant, job_id=job_id)
    if wait > 0:
        job = await wait_for_change(service, job, seen=if_none_match, seconds=wait)
    return await run_in_threadpool(job_response, service, job, seen=if_none_match)


@router.patch(
    "/{job_id}",
    response_model=JobView,
    responses=problems(404, 412, 415, 428),
    summary="Change labels or priority",
)
def change(
    job_id: JobId,
    body: JobPatch,
    service: ServiceDep,
    caller: JobWriter,
    if_match: Annotated[
        str | None, Header(description="The `ETag` that you changed from.", examples=['"7"'])
    ] = None,
) -> Response:
    """Replace what is given, if nobody else has changed the job since you read it."""
    if if_match is None:
        raise Problem(
            428,
            "if_match_missing",
            "A change needs the version it starts from.",
            fix="GET the job and send its ETag as If-Match; If-Match: * takes any version.",
        )
    seen = _VERSION.fullmatch(if_match.strip())
    any_version = if_match.strip() == "*"
    job = amend(
        service.db,
        tenant=caller.tenant,
        job_id=job_id,
        version=None if any_version else int(seen[1]) if seen else -1,
        labels=body.labels,
        priority=None if body.priority is None else PRIORITIES[body.priority],
    )
    return job_response(service, job)
