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
