"""From bytes in staging to an artifact, or to nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from stiefel_api.problems import Problem
from stiefel_api.receiving import Parts, judge
from stiefel_api.service import Service
from stiefel_api.views.artifacts import PartView, UploadView
from stiefel_jobs.blobs import DigestMismatchError
from stiefel_jobs.records import Artifact, Blob, Upload
from stiefel_jobs.store import artifacts, uploads


def keep_staged(
    service: Service, tenant: str, name: str, staging: str, blob: Blob, promised: str | None
) -> tuple[Artifact, bool]:
    """Judge a staged file and make it an artifact; drop its bytes in every other case."""
    try:
        if promised not in {None, blob.sha256}:
            raise _mismatch(str(promised), blob.sha256)
        ttl_s = service.settings.artifact_ttl_s
        owned = artifacts.reuse_artifact(
            service.db, tenant=tenant, sha256=blob.sha256, name=name, ttl_s=ttl_s
        )
        if owned is not None:
            return owned, False
        new = judge(service, name, blob, partial(service.blobs.read_object, staging))
        service.blobs.promote(tenant, staging, blob)
        artifact = artifacts.add_artifact(
            service.db,
            tenant=tenant,
            new=new,
            ttl_s=ttl_s,
            max_stored=service.settings.max_stored_bytes,
        )
        return artifact, True
    finally:
        service.blobs.discard(staging)


def finished(service: Service, upload: Upload) -> Artifact | None:
    """Return what an upload became, None while it is open.

    Raises:
        Problem: 410 when it was aborted.
    """
    if upload.artifact_id is not None:
        return artifacts.get_artifact(
            service.db, tenant=upload.tenant, artifact_id=upload.artifact_id
        )
    require_open(upload)
    return None


def assemble(service: Service, upload: Upload) -> Artifact:
    """Make the parts of an open upload an artifact; asked for twice at once, the same one.

    Raises:
        Problem: 409 while parts are missing; 410 when the upload was aborted meanwhile; 422 when
            the content is not what was promised, and then the upload is dropped; 503 while this
            process is at it already.
    """
    with _alone(service, upload):
        gone: Exception | None = _parts_missing(service, upload)
        if gone is None:
            try:
                return _put_together(service, upload)
            except FileNotFoundError as error:
                gone = error
        # Whoever completes or drops the upload, another process too, takes its parts away.
        now = uploads.get_upload(service.db, tenant=upload.tenant, upload_id=upload.id)
        artifact = finished(service, now)
        if artifact is None:
            raise gone
        return artifact


@contextmanager
def _alone(service: Service, upload: Upload) -> Iterator[None]:
    """Let this process put an upload together once at a time: it reads all of its bytes."""
    mine = object()
    if service.assembling.setdefault(upload.id, mine) is not mine:
        # About as long as the bytes take, and no longer than clients are ready to wait.
        seconds = min(60, 1 + upload.size // 2**28)
        raise Problem(
            503,
            "upload_assembling",
            f"The parts of upload {upload.id} are being put together.",
            fix=f"Repeat POST /v1/uploads/{upload.id}/complete after the time in Retry-After.",
            headers={"Retry-After": str(seconds)},
        )
    try:
        yield
    finally:
        del service.assembling[upload.id]


def _parts_missing(service: Service, upload: Upload) -> Problem | None:
    count = uploads.part_count(upload)
    received = {part.number for part in uploads.received_parts(service.blobs, upload)}
    missing = [n for n in range(1, count + 1) if n not in received]
    if not missing:
        return None
    return Problem(
        409,
        "parts_missing",
        f"{len(missing)} of {count} parts have not arrived whole, the first is {missing[0]}.",
        fix=f"PUT the missing parts; GET /v1/uploads/{upload.id} lists their URLs.",
        missing_parts=missing[:1000],
    )


def _put_together(service: Service, upload: Upload) -> Artifact:
    keys = [uploads.part_key(upload, n) for n in range(1, uploads.part_count(upload) + 1)]
    try:
        # The header is looked at before anything is copied: a bad file costs two short reads.
        draft = Blob(upload.sha256 or "", upload.size)
        parts = Parts(service, keys, upload.part_size)
        new = judge(service, upload.filename, draft, parts.read)
        blob = service.blobs.put_objects(upload.tenant, keys, sha256=upload.sha256)
    except DigestMismatchError as error:
        _drop(service, upload)
        raise _mismatch(error.expected, error.actual) from error
    except Problem:
        _drop(service, upload)
        raise
    artifact = uploads.complete_upload(
        service.db,
        tenant=upload.tenant,
        upload_id=upload.id,
        new=replace(new, sha256=blob.sha256),
        ttl_s=service.settings.artifact_ttl_s,
        max_stored=service.settings.max_stored_bytes,
    )
    uploads.drop_parts(service.blobs, upload)
    return artifact


def _drop(service: Service, upload: Upload) -> None:
    """Forget a file that can never become an artifact."""
    uploads.abort_upload(service.db, tenant=upload.tenant, upload_id=upload.id)
    uploads.drop_parts(service.blobs, upload)


def view(service: Service, upload: Upload) -> UploadView:
    """Show an upload with its parts, and with URLs for those that are missing."""
    if upload.state != "open":
        artifact = finished(service, upload) if upload.state == "completed" else None
        return UploadView.of(upload, [], artifact)
    received = {part.number for part in uploads.received_parts(service.blobs, upload)}
    parts = [
        PartView(
            number=number,
            bytes=uploads.part_length(upload, number),
            url=_part_url(service, upload, number),
            received=number in received,
        )
        for number in range(1, uploads.part_count(upload) + 1)
    ]
    return UploadView.of(upload, parts, None)


def _part_url(service: Service, upload: Upload, number: int) -> str:
    url = None
    if service.settings.direct_uploads:
        key = uploads.part_key(upload, number)
        url = service.blobs.presign("PUT", key, service.settings.presign_s)
    return url or f"/v1/uploads/{upload.id}/parts/{number}"


def require_open(upload: Upload) -> None:
    """Refuse to go on with an upload that is over.

    Raises:
        Problem: 409 when completed, 410 when aborted.
    """
    if upload.state == "completed":
        raise Problem(
            409,
            "upload_completed",
            f"Upload {upload.id} is complete and takes no more parts.",
            fix=f"Use its artifact {upload.artifact_id}.",
        )
    if upload.state == "aborted":
        raise Problem(
            410,
            "upload_aborted",
            f"Upload {upload.id} was aborted.",
            fix="Create a new upload with POST /v1/uploads.",
        )


def too_large(limit: int) -> Problem:
    """Return the refusal of a file over the limit."""
    return Problem(
        413,
        "file_too_large",
        f"The file is larger than {limit} bytes, the most this service takes.",
        fix="Split the checkpoint into shards.",
    )


def wrong_length(number: int, expected: int, found: str) -> Problem:
    """Return the refusal of a part that is too short or too long."""
    return Problem(
        422,
        "part_length",
        f"Part {number} must have exactly {expected} bytes; {found} came.",
        fix="Send the part again, cut at multiples of part_size.",
    )


def _mismatch(promised: str, found: str) -> Problem:
    return Problem(
        422,
        "digest_mismatch",
        f"The bytes have sha256 {found}; {promised} was promised. Nothing was kept.",
        fix="The file changed or was damaged on the way: hash and send it again.",
    )
