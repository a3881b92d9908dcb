"""``/v1/jobs``: ask for work, watch it, steer it."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from stiefel_api import contents
from stiefel_api.checks import Checked, check
from stiefel_api.cursors import AfterId, Limit
from stiefel_api.following import job_response, settle, wait_for_change
from stiefel_api.problems import Problem
from stiefel_api.routes.artifacts import CONTENT, Direct
from stiefel_api.security import ArtifactReader, Caller, JobReader, JobWriter
from stiefel_api.service import Service, ServiceDep
from stiefel_api.views.base import JOB_EXAMPLE, Page, problems
from stiefel_api.views.history import PlanView
from stiefel_api.views.jobs import JobPatch, JobView, NewJob
from stiefel_jobs.records import Job, Submission, Submitted
from stiefel_jobs.states import PRIORITIES, State
from stiefel_jobs.store import actions, artifacts, queries
from stiefel_jobs.store.amend import amend
from stiefel_jobs.store.submit import submit

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

JobId = Annotated[str, Path(description="Id of the job.", examples=[JOB_EXAMPLE])]
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_WAIT = re.compile(r"(?:^|[,;\s])wait=(\d{1,3})(?:$|[,;\s])")
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
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=255,
            description="Any unique text. Repeating a request with its key within 7 days gives "
            "the job that the first one made.",
            examples=["8e03978e-40d5-43e8-bc93-6894a57f9324"],
        ),
    ] = None,
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
    checked = await run_in_threadpool(check, service, caller.tenant, body.spec, device=body.device)
    if dry_run:
        return Response(checked.view().model_dump_json(), media_type="application/json")
    submission = _submission(service, body, checked, request.headers.get("traceparent"))
    submitted = await run_in_threadpool(_submit, service, caller, submission, idempotency_key, body)
    job = submitted.job
    wait = _WAIT.search(prefer or "")
    if wait is not None:
        job = await settle(service, job, seconds=int(wait[1]))
    headers = {"Location": f"/v1/jobs/{job.id}"}
    if submitted.replayed:
        headers["Idempotency-Replayed"] = "true"
    if wait is not None:
        headers["Preference-Applied"] = f"wait={wait[1]}"
    return await run_in_threadpool(job_response, service, job, status=202, headers=headers)


def _submission(
    service: Service, body: NewJob, checked: Checked, traceparent: str | None
) -> Submission:
    ttl = body.output_ttl.total_seconds() if body.output_ttl else service.settings.artifact_ttl_s
    trace = traceparent if traceparent and _TRACEPARENT.fullmatch(traceparent) else None
    return Submission(
        method=checked.spec.method,
        spec=checked.spec.model_dump(mode="json"),
        inputs=checked.spec.inputs(),
        queue=checked.queue,
        priority=PRIORITIES[body.priority],
        max_attempts=body.max_attempts,
        deadline_s=body.deadline.total_seconds() if body.deadline else None,
        labels=body.labels,
        output_ttl_s=ttl,
        traceparent=trace,
    )


def _submit(
    service: Service, caller: Caller, submission: Submission, key: str | None, body: NewJob
) -> Submitted:
    canonical = json.dumps(body.model_dump(mode="json"), sort_keys=True)
    submitted = submit(
        service.db,
        tenant=caller.tenant,
        submission=submission,
        idempotency_key=key,
        fingerprint=hashlib.sha256(canonical.encode()).hexdigest(),
        max_live=service.settings.max_live_jobs,
    )
    if not submitted.replayed:
        # Here and not in a task after the response: a worker may start while the answer travels.
        service.ringer.ring(submitted.job.id)
    return submitted


@router.get("", response_model=Page[JobView], responses=problems(), summary="List jobs")
def list_all(
    service: ServiceDep,
    caller: JobReader,
    status: Annotated[
        list[State] | None, Query(description="Any of these.", examples=[["queued", "running"]])
    ] = None,
    label: Annotated[
        list[str] | None, Query(description="All of these, `key:value`.", examples=[["team:nlp"]])
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
        after=after,
        limit=limit,
    )
    views = [JobView.of(job) for job in page.items]
    return Page(data=views, has_more=page.next is not None, next=page.next)


def _label(text: str) -> tuple[str, str]:
    for separator in (":", "="):
        key, found, value = text.partition(separator)
        if found and key:
            return key, value
    raise Problem(
        422,
        "label_malformed",
        f"The label {text[:100]!r} is not of the form key:value.",
        fix="Write ?label=team:nlp, once per label.",
        errors=[{"parameter": "label", "in": "query", "message": "not key:value"}],
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
    version = None if if_match.strip() == "*" else if_match.strip().strip('"')
    job = amend(
        service.db,
        tenant=caller.tenant,
        job_id=job_id,
        version=None if version is None else int(version) if version.isdigit() else -1,
        labels=body.labels,
        priority=None if body.priority is None else PRIORITIES[body.priority],
    )
    return job_response(service, job)


def _verb(name: str, summary: str, text: str) -> Any:
    """Add the route of one action."""
    action = getattr(actions, name)

    @router.post(
        f"/{{job_id}}/{name}",
        name=name,
        operation_id=f"{name}_job",
        status_code=202,
        response_model=JobView,
        responses=problems(404, 409),
        summary=summary,
        description=text,
    )
    def act(job_id: JobId, service: ServiceDep, caller: JobWriter) -> Response:
        job: Job = action(service.db, tenant=caller.tenant, job_id=job_id)
        if job.state is State.QUEUED:
            service.ringer.ring(job.id)
        return job_response(service, job, status=202, headers={"Location": f"/v1/jobs/{job.id}"})

    return act


_verb(
    "cancel",
    "Cancel a job",
    "At once while it is queued or paused; a running job is stopped within two seconds. May be "
    "repeated.",
)
_verb(
    "pause",
    "Pause a job",
    "A running job stops at its next safe point, keeps its checkpoint and frees its worker.",
)
_verb("resume", "Resume a paused job", "It continues from its last checkpoint.")
_verb(
    "retry",
    "Retry a failed or cancelled job",
    "It gets a fresh budget of attempts and continues from its last checkpoint.",
)


@router.get(
    "/{job_id}/files/{name}",
    response_class=Response,
    responses={**CONTENT, **problems(404, 416)},
    summary="Download a file of a finished job",
)
@router.head("/{job_id}/files/{name}", include_in_schema=False)
async def file(
    job_id: JobId,
    name: Annotated[str, Path(description="File name.", examples=["model.safetensors"])],
    request: Request,
    service: ServiceDep,
    caller: ArtifactReader,
    direct: Direct = None,
) -> Response:
    """Send the same bytes as the artifact's content, without the need of its id."""
    job = await run_in_threadpool(queries.get_job, service.db, tenant=caller.tenant, job_id=job_id)
    files = (job.result or {}).get("files", {})
    if name not in files:
        raise _no_file(job, name, sorted(files))
    artifact = await run_in_threadpool(
        artifacts.get_artifact,
        service.db,
        tenant=caller.tenant,
        artifact_id=files[name]["artifact"],
    )
    wanted = service.settings.direct_downloads if direct is None else direct
    return await contents.send(service, request, artifact, direct=wanted)


def _no_file(job: Job, name: str, files: list[str]) -> Problem:
    if files:
        fix = f"Its files are: {', '.join(files)}."
    else:
        fix = "Files exist once the job has succeeded; look with GET /v1/jobs/{id}?wait=50."
    return Problem(
        404,
        "file_not_found",
        f"Job {job.id} is {job.state} and has no file {name[:100]!r}.",
        fix=fix,
    )
