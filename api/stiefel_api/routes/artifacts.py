"""``/v1/artifacts``: stored files and their bytes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from stiefel_api import contents
from stiefel_api.cursors import AfterId, Limit
from stiefel_api.security import ArtifactReader, ArtifactWriter
from stiefel_api.service import ServiceDep
from stiefel_api.views.artifacts import ArtifactView
from stiefel_api.views.base import ARTIFACT_EXAMPLE, JOB_EXAMPLE, Page, problems
from stiefel_jobs.store import artifacts

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])

ArtifactId = Annotated[str, Path(description="Id of the artifact.", examples=[ARTIFACT_EXAMPLE])]
Direct = Annotated[
    bool | None,
    Query(
        description="Whether to answer with a redirect to the object store, where there is one. "
        "Default: the service's own choice.",
        examples=[False],
    ),
]


@router.get("", response_model=Page[ArtifactView], responses=problems(), summary="List artifacts")
def list_all(
    service: ServiceDep,
    caller: ArtifactReader,
    after: AfterId = None,
    limit: Limit = 50,
    job: Annotated[
        str | None, Query(description="Only those this job made.", examples=[JOB_EXAMPLE])
    ] = None,
) -> Page[ArtifactView]:
    """Newest first."""
    page = artifacts.list_artifacts(
        service.db, tenant=caller.tenant, job_id=job, after=after, limit=limit
    )
    views = [ArtifactView.of(artifact) for artifact in page.items]
    return Page(data=views, has_more=page.next is not None, next=page.next)


@router.get(
    "/{artifact_id}",
    response_model=ArtifactView,
    responses=problems(404),
    summary="Describe an artifact",
)
def read(artifact_id: ArtifactId, service: ServiceDep, caller: ArtifactReader) -> ArtifactView:
    """Name, size, digest and what was read from the content."""
    return ArtifactView.of(
        artifacts.get_artifact(service.db, tenant=caller.tenant, artifact_id=artifact_id)
    )


@router.delete(
    "/{artifact_id}", status_code=204, responses=problems(404, 409), summary="Delete an artifact"
)
def delete(artifact_id: ArtifactId, service: ServiceDep, caller: ArtifactWriter) -> Response:
    """Forget an artifact; refused while an unfinished job reads it."""
    artifacts.delete_artifact(service.db, tenant=caller.tenant, artifact_id=artifact_id)
    return Response(status_code=204)


CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes.",
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    },
    206: {"description": "The bytes of the range asked for."},
    304: {"description": "`If-None-Match` names these very bytes."},
    307: {"description": "The bytes are in the object store, at the `Location`."},
}


@router.get(
    "/{artifact_id}/content",
    response_class=Response,
    responses={**CONTENT, **problems(404, 416)},
    summary="Download an artifact",
)
@router.head("/{artifact_id}/content", include_in_schema=False)
async def content(
    artifact_id: ArtifactId,
    request: Request,
    service: ServiceDep,
    caller: ArtifactReader,
    direct: Direct = None,
    _range: Annotated[
        str | None,
        Header(alias="Range", description="One range of bytes.", examples=["bytes=1048576-"]),
    ] = None,
) -> Response:
    """Send the bytes, whole or from where a download broke off (`Range`, `If-Range`)."""
    artifact = await run_in_threadpool(
        artifacts.get_artifact, service.db, tenant=caller.tenant, artifact_id=artifact_id
    )
    wanted = service.settings.direct_downloads if direct is None else direct
    return await contents.send(service, request, artifact, direct=wanted)
