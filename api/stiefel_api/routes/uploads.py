"""``/v1/uploads``: a file in one request, or in parts that survive a broken connection."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response, status
from starlette.concurrency import run_in_threadpool

from stiefel_api.keeping import (
    assemble,
    finished,
    keep_staged,
    require_open,
    too_large,
    view,
    wrong_length,
)
from stiefel_api.receiving import blocks, promised_digest
from stiefel_api.security import ArtifactWriter
from stiefel_api.service import ServiceDep
from stiefel_api.views.artifacts import ArtifactView, NewUpload, UploadView
from stiefel_api.views.base import UPLOAD_EXAMPLE, FileName, problems
from stiefel_jobs.blobs import TooLargeError
from stiefel_jobs.store import artifacts, uploads

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

UploadId = Annotated[str, Path(description="Id of the upload.", examples=[UPLOAD_EXAMPLE])]
_FILE = {
    "requestBody": {
        "required": True,
        "description": "The bytes of the file.",
        "content": {"application/octet-stream": {"schema": {"type": "string"}}},
    }
}


@router.put(
    "/{filename}",
    status_code=201,
    response_model=ArtifactView,
    responses=problems(400, 408, 413, 429),
    openapi_extra=_FILE,
    summary="Upload a file in one request",
)
async def put_file(
    request: Request,
    response: Response,
    service: ServiceDep,
    caller: ArtifactWriter,
    filename: Annotated[
        FileName, Path(description="A plain file name.", examples=["m.safetensors"])
    ],
    repr_digest: Annotated[
        str | None, Header(description="`sha-256=:BASE64:`, checked against the bytes.")
    ] = None,
) -> ArtifactView:
    """Stream the body to the store while hashing it: `curl -T model.safetensors …/v1/uploads/`.

    A name that ends in `.safetensors` promises that format, and the header is checked.
    """
    promised = promised_digest(repr_digest)
    limit = service.settings.max_upload_bytes
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large(limit)
    staging = service.blobs.staging_key("streams")
    try:
        blob = await service.blobs.stage(staging, blocks(request.stream()), limit=limit)
    except TooLargeError as error:
        raise too_large(limit) from error
    keep = partial(keep_staged, service, caller.tenant, filename, staging, blob, promised)
    artifact, fresh = await run_in_threadpool(keep)
    if not fresh:
        response.status_code = status.HTTP_200_OK
    response.headers["Location"] = f"/v1/artifacts/{artifact.id}"
    return ArtifactView.of(artifact)


@router.post(
    "",
    status_code=201,
    response_model=UploadView | ArtifactView,
    responses={
        200: {"model": ArtifactView, "description": "You own these bytes already."},
        **problems(413),
    },
    summary="Begin an upload in parts",
)
def create(
    body: NewUpload, response: Response, service: ServiceDep, caller: ArtifactWriter
) -> UploadView | ArtifactView:
    """Announce a file; send its parts to the URLs of the answer, in any order, then complete it."""
    settings = service.settings
    if body.size > settings.max_upload_bytes:
        raise too_large(settings.max_upload_bytes)
    if body.sha256 is not None:
        owned = artifacts.reuse_artifact(
            service.db,
            tenant=caller.tenant,
            sha256=body.sha256,
            name=body.filename,
            ttl_s=settings.artifact_ttl_s,
        )
        if owned is not None:
            response.status_code = status.HTTP_200_OK
            response.headers["Location"] = f"/v1/artifacts/{owned.id}"
            return ArtifactView.of(owned)
    upload = uploads.create_upload(
        service.db,
        tenant=caller.tenant,
        filename=body.filename,
        size=body.size,
        sha256=body.sha256,
        part_size=settings.part_bytes,
        ttl_s=settings.upload_ttl_s,
    )
    response.headers["Location"] = f"/v1/uploads/{upload.id}"
    return view(service, upload)


@router.get(
    "/{upload_id}",
    response_model=UploadView,
    responses=problems(404, 410),
    summary="See which parts have arrived",
)
def read(upload_id: UploadId, service: ServiceDep, caller: ArtifactWriter) -> UploadView:
    """Show an upload with fresh URLs for the parts that are still missing."""
    upload = uploads.get_upload(service.db, tenant=caller.tenant, upload_id=upload_id)
    return view(service, upload)


@router.put(
    "/{upload_id}/parts/{number}",
    status_code=204,
    responses=problems(404, 408, 410, 413),
    openapi_extra=_FILE,
    summary="Send one part",
)
async def put_part(
    request: Request,
    upload_id: UploadId,
    number: Annotated[int, Path(ge=1, description="Counted from 1.", examples=[1])],
    service: ServiceDep,
    caller: ArtifactWriter,
) -> Response:
    """Store a part. It may be sent again until the upload is complete; the last one counts."""
    upload = await run_in_threadpool(
        uploads.get_upload, service.db, tenant=caller.tenant, upload_id=upload_id
    )
    require_open(upload)
    length = uploads.part_length(upload, number)
    try:
        key = uploads.part_key(upload, number)
        blob = await service.blobs.stage(key, blocks(request.stream()), limit=length)
    except TooLargeError as error:
        raise wrong_length(number, length, "more") from error
    if blob.size != length:
        # It counts as missing, because received parts are those of the right length.
        raise wrong_length(number, length, str(blob.size))
    return Response(status_code=204)


@router.post(
    "/{upload_id}/complete",
    status_code=201,
    response_model=ArtifactView,
    responses=problems(404, 409, 410, 429),
    summary="Make the parts an artifact",
)
def complete(
    upload_id: UploadId, response: Response, service: ServiceDep, caller: ArtifactWriter
) -> ArtifactView:
    """Put the parts together while hashing, check size, digest and header, and keep the file.

    May be repeated: an upload that is complete answers its artifact again.
    """
    upload = uploads.get_upload(service.db, tenant=caller.tenant, upload_id=upload_id)
    artifact = finished(service, upload) or assemble(service, upload)
    response.headers["Location"] = f"/v1/artifacts/{artifact.id}"
    return ArtifactView.of(artifact)


@router.delete(
    "/{upload_id}", status_code=204, responses=problems(404), summary="Give an upload up"
)
def abort(upload_id: UploadId, service: ServiceDep, caller: ArtifactWriter) -> Response:
    """Drop an upload and its parts; an artifact that it became stays."""
    upload = uploads.abort_upload(service.db, tenant=caller.tenant, upload_id=upload_id)
    uploads.drop_parts(service.blobs, upload)
    return Response(status_code=204)
