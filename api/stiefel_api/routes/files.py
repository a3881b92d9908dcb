"""The files of a finished job, by name."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from stiefel_api import contents
from stiefel_api.problems import Problem
from stiefel_api.routes.artifacts import CONTENT, Direct
from stiefel_api.routes.jobs import JobId
from stiefel_api.security import ArtifactReader
from stiefel_api.service import ServiceDep
from stiefel_api.views.base import problems
from stiefel_jobs.records import Job
from stiefel_jobs.store import artifacts, queries

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


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


@router.get(
    "/{job_id}/checkpoints/{number}/files/{name:path}",
    response_class=Response,
    responses={**CONTENT, **problems(404, 416)},
    summary="Download a file of a checkpoint",
)
@router.head("/{job_id}/checkpoints/{number}/files/{name:path}", include_in_schema=False)
async def checkpoint_file(
    job_id: JobId,
    number: Annotated[int, Path(ge=1, le=2**31 - 1, description="Of the list.", examples=[7])],
    name: Annotated[
        str,
        Path(description="File name.", examples=["step-000000980.weights.safetensors"]),
    ],
    request: Request,
    service: ServiceDep,
    caller: ArtifactReader,
    direct: Direct = None,
) -> Response:
    """Send a state file as it was at that checkpoint, while the job runs and after its end."""
    found = await run_in_threadpool(
        queries.checkpoints, service.db, tenant=caller.tenant, job_id=job_id
    )
    files = {file.path: file for item in found if item.number == number for file in item.files}
    if name not in files:
        raise _no_checkpoint_file([item.number for item in found], number, name, sorted(files))
    wanted = service.settings.direct_downloads if direct is None else direct
    return await contents.send_state(
        service, request, files[name], tenant=caller.tenant, direct=wanted
    )


def _no_checkpoint_file(kept: list[int], number: int, name: str, files: list[str]) -> Problem:
    if number not in kept:
        listed = ", ".join(map(str, kept)) or "none"
        return Problem(
            404,
            "checkpoint_not_found",
            f"There is no checkpoint {number}; older ones are dropped as new ones come.",
            fix=f"Kept are: {listed}. Look again with GET /v1/jobs/{{id}}/checkpoints.",
        )
    return Problem(
        404,
        "file_not_found",
        f"Checkpoint {number} has no file {name[:100]!r}.",
        fix=f"Its files are: {', '.join(files[:20])}.",
    )


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
