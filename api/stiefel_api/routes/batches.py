"""``/v1/batches``: a grid of jobs in one request, and one report over all of them."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from stiefel_api.accepting import IdempotencyKey
from stiefel_api.batching import accept_batch, plan_batch
from stiefel_api.comparing import compare
from stiefel_api.cursors import AfterId, Limit
from stiefel_api.following import LOOK_AGAIN_S, etag, is_seen, wait_for_batch
from stiefel_api.security import JobReader, JobWriter
from stiefel_api.service import Service, ServiceDep
from stiefel_api.tables import as_csv, as_markdown
from stiefel_api.views.base import BATCH_EXAMPLE, Page, problems
from stiefel_api.views.batches import BatchDetail, BatchPlanView, BatchView, NewBatch
from stiefel_api.views.reports import ReportView
from stiefel_jobs.store import batches

router = APIRouter(prefix="/v1/batches", tags=["batches"])

BatchId = Annotated[str, Path(description="Id of the batch.", examples=[BATCH_EXAMPLE])]
Seen = Annotated[str | None, Header(description="The `ETag` seen last.", examples=['"7"'])]
Format = Literal["json", "csv", "markdown"]
_TYPES: dict[Format, str] = {
    "json": "application/json",
    "csv": "text/csv; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
}
_UNCHANGED = {"description": "Unchanged since the version in `If-None-Match`."}


@router.post(
    "",
    status_code=202,
    response_model=BatchDetail,
    responses={
        200: {"model": BatchPlanView, "description": "With `dry_run`: what the jobs would do."},
        202: {
            "description": "All jobs are accepted and committed.",
            "headers": {
                "Location": {"schema": {"type": "string"}, "description": "The batch."},
                "ETag": {"schema": {"type": "string"}, "description": "Its version."},
                "Idempotency-Replayed": {
                    "schema": {"type": "string"},
                    "description": "`true` when an earlier request had made it.",
                },
            },
        },
        **problems(400, 404, 413, 415, 429),
    },
    summary="Submit a batch",
)
def create(
    body: NewBatch,
    request: Request,
    service: ServiceDep,
    caller: JobWriter,
    dry_run: Annotated[
        bool, Query(description="Check and plan, but make no job.", examples=[False])
    ] = False,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Check every cell as a job of its own, then queue all of them in one transaction.

    Where any cell cannot be carried out, nothing is submitted, and `errors` names every faulty
    field with the cells that have it.
    """
    if dry_run:
        return _json(plan_batch(service, caller.tenant, body))
    trace = request.headers.get("traceparent")
    made = accept_batch(service, caller.tenant, body, key=idempotency_key, traceparent=trace)
    headers = {"Location": f"/v1/batches/{made.batch.id}"}
    if made.replayed:
        headers["Idempotency-Replayed"] = "true"
    return _answer(service, caller.tenant, made.batch.id, status=202, headers=headers)


@router.get("", response_model=Page[BatchView], responses=problems(), summary="List batches")
def list_all(
    service: ServiceDep, caller: JobReader, after: AfterId = None, limit: Limit = 50
) -> Page[BatchView]:
    """Newest first."""
    page = batches.list_batches(service.db, tenant=caller.tenant, after=after, limit=limit)
    views = [BatchView.of(batch) for batch in page.items]
    return Page(data=views, has_more=page.next is not None, next=page.next)


@router.get(
    "/{batch_id}",
    response_model=BatchDetail,
    responses={
        200: {"description": "The batch; `Retry-After` says when to look again while it is live."},
        304: _UNCHANGED,
        **problems(404),
    },
    summary="Look at a batch",
)
async def read(
    batch_id: BatchId,
    service: ServiceDep,
    caller: JobReader,
    wait: Annotated[
        float,
        Query(
            ge=0,
            le=60,
            description="Seconds to hold the answer back until one of its jobs changes: from "
            "the version in `If-None-Match`, or from now.",
            examples=[50],
        ),
    ] = 0,
    if_none_match: Seen = None,
) -> Response:
    """Answer the batch with its jobs as they are, or, with `wait`, as soon as one has changed."""
    if wait > 0:
        batch = await run_in_threadpool(
            batches.get_batch, service.db, tenant=caller.tenant, batch_id=batch_id
        )
        await wait_for_batch(service, batch, seen=if_none_match, seconds=wait)
    return await run_in_threadpool(_answer, service, caller.tenant, batch_id, seen=if_none_match)


@router.post(
    "/{batch_id}/cancel",
    status_code=202,
    response_model=BatchDetail,
    responses=problems(404),
    summary="Cancel a batch",
)
def cancel(batch_id: BatchId, service: ServiceDep, caller: JobWriter) -> Response:
    """Cancel every job that has not ended. Jobs that are delivering do end. May be repeated."""
    batches.cancel_batch(service.db, tenant=caller.tenant, batch_id=batch_id)
    headers = {"Location": f"/v1/batches/{batch_id}"}
    return _answer(service, caller.tenant, batch_id, status=202, headers=headers)


@router.get(
    "/{batch_id}/report",
    response_model=ReportView,
    responses={
        200: {
            "description": "The report, in the form that `format` or `Accept` asks for.",
            "content": {
                "text/csv": {"schema": {"type": "string"}},
                "text/markdown": {"schema": {"type": "string"}},
            },
        },
        304: _UNCHANGED,
        **problems(404),
    },
    summary="Compare the jobs of a batch",
)
def report(
    batch_id: BatchId,
    service: ServiceDep,
    caller: JobReader,
    format: Annotated[  # noqa: A002 - the parameter's name in the URL
        Format | None,
        Query(description="Default: what `Accept` names first, else JSON.", examples=["markdown"]),
    ] = None,
    size: Annotated[
        str | None,
        Query(
            max_length=255,
            description="Metric of size; less is better.",
            examples=["parameters_after"],
        ),
    ] = None,
    quality: Annotated[
        str | None,
        Query(
            max_length=255,
            description="Metric of quality; `-name` where less is better.",
            examples=["-test_loss"],
        ),
    ] = None,
    accept: Annotated[str | None, Header(description="Form of the answer.")] = None,
    if_none_match: Seen = None,
) -> Response:
    """Put all cells side by side: varying fields, status, metrics, and the front.

    Cells that differ in the seed alone are summed up by mean and standard deviation. A batch that
    goes on has a report too: of the jobs that have ended.
    """
    batch, jobs = batches.batch_jobs(service.db, tenant=caller.tenant, batch_id=batch_id)
    form = format or _preferred(accept)
    tag = f'"{batch.version}-{form}"'
    headers = {"ETag": tag, "Vary": "Accept"}
    if is_seen(tag, if_none_match):
        return Response(status_code=304, headers=headers)
    found = compare(batch, jobs, size=size, quality=quality)
    if form == "json":
        return _json(found, headers=headers)
    text = as_csv(found) if form == "csv" else as_markdown(found)
    return Response(text, headers=headers, media_type=_TYPES[form])


def _preferred(accept: str | None) -> Format:
    """Return the first form that ``Accept`` names; JSON where it names none."""
    for part in (accept or "").split(","):
        named = part.partition(";")[0].strip().lower()
        for form, media_type in _TYPES.items():
            if named == media_type.partition(";")[0]:
                return form
    return "json"


def _answer(
    service: Service,
    tenant: str,
    batch_id: str,
    *,
    status: int = 200,
    headers: dict[str, str] | None = None,
    seen: str | None = None,
) -> Response:
    """Show a batch with its jobs, or say 304 where the caller has seen this version."""
    batch, jobs = batches.batch_jobs(service.db, tenant=tenant, batch_id=batch_id)
    given = {"ETag": etag(batch), **(headers or {})}
    if not batch.finished:
        given["Retry-After"] = str(LOOK_AGAIN_S)
    if is_seen(etag(batch), seen):
        return Response(status_code=304, headers=given)
    return _json(BatchDetail.with_jobs(batch, jobs), status, headers=given)


def _json(
    view: BatchDetail | BatchPlanView | ReportView,
    status: int = 200,
    *,
    headers: dict[str, str] | None = None,
) -> Response:
    return Response(view.model_dump_json(), status, headers=headers, media_type=_TYPES["json"])
