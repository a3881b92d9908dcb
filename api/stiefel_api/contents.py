"""Files on their way out: whole or in part (RFC 9110, section 14), or a redirect to the store."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from typing import NamedTuple
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.responses import Response

from stiefel_api.problems import Problem
from stiefel_api.service import Service
from stiefel_jobs.records import Artifact, StateFile

_RANGE = re.compile(r"bytes=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*")
_TYPES = {
    "json": "application/json",
    "markdown": "text/markdown; charset=utf-8",
    "text": "text/plain; charset=utf-8",
}


class Span(NamedTuple):
    """Bytes from ``start`` to before ``end``."""

    start: int
    end: int


async def send(service: Service, request: Request, artifact: Artifact, *, direct: bool) -> Response:
    """Answer a request for an artifact's bytes.

    Args:
        service: where the bytes are.
        request: its method and its ``Range``, ``If-Range`` and ``If-None-Match`` count.
        artifact: what is asked for.
        direct: send the client to the store, if that can be asked without this service's keys.
    """
    headers = _headers(artifact)
    if _matches(request.headers.get("if-none-match"), headers["ETag"]):
        return Response(status_code=304, headers=headers)
    # All that HEAD asks for is known here, and a signature for GET does not cover it.
    if direct and request.method != "HEAD":
        key = service.blobs.key(artifact.tenant, artifact.sha256)
        url = service.blobs.presign("GET", key, service.settings.presign_s)
        if url is not None:
            # 307 keeps the method; the digest lets the client check what the store sends.
            kept = {name: headers[name] for name in ("ETag", "Repr-Digest")}
            return RedirectResponse(url, 307, headers=kept | {"Cache-Control": "no-store"})
    span = _span(request, artifact, headers["ETag"])
    status = 200
    if span is not None:
        status = 206
        headers["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{artifact.size}"
    start, end = span or Span(0, artifact.size)
    headers["Content-Length"] = str(end - start)
    media_type = _TYPES.get(artifact.kind, "application/octet-stream")
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    body = await _open(service, artifact, start, end)
    return StreamingResponse(body, status, headers=headers, media_type=media_type)


async def send_state(
    service: Service, request: Request, file: StateFile, *, tenant: str, direct: bool
) -> Response:
    """Answer a request for a state file; one that grew in pieces is sent whole, piece by piece."""
    name = file.path.rpartition("/")[2]
    if len(file.segments) == 1:
        whole = Artifact(
            id=name,
            tenant=tenant,
            kind="state",
            name=name,
            sha256=file.segments[0].sha256,
            size=file.size,
            job_id=None,
            meta={},
            created_at=0.0,
            expires_at=None,
        )
        return await send(service, request, whole, direct=direct)
    headers = {"Content-Length": str(file.size), "Content-Disposition": _attachment(name)}
    if request.method == "HEAD":
        return Response(headers=headers, media_type="application/octet-stream")
    body = _pieces(service, tenant, file)
    return StreamingResponse(body, headers=headers, media_type="application/octet-stream")


async def _pieces(service: Service, tenant: str, file: StateFile) -> AsyncIterator[bytes]:
    for piece in file.segments:
        async for chunk in await service.blobs.open_range_async(
            tenant, piece.sha256, 0, piece.size
        ):
            yield chunk


async def _open(service: Service, artifact: Artifact, start: int, end: int) -> AsyncIterator[bytes]:
    try:
        return await service.blobs.open_range_async(artifact.tenant, artifact.sha256, start, end)
    except FileNotFoundError as error:
        raise Problem(
            500,
            "content_missing",
            f"The bytes of artifact {artifact.id} are not in the store.",
            fix="Report the request_id to whoever runs the service: stored data was lost.",
        ) from error


def _headers(artifact: Artifact) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(artifact.sha256)).decode()
    return {
        "ETag": f'"{artifact.sha256}"',
        "Repr-Digest": f"sha-256=:{digest}:",
        "Accept-Ranges": "bytes",
        "Content-Disposition": _attachment(artifact.name),
        # The id names these bytes for ever; but they are someone's, so no shared cache.
        "Cache-Control": "private, max-age=31536000, immutable",
    }


def _attachment(name: str) -> str:
    fallback = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{fallback}\"; filename*=UTF-8''{quote(name, safe='')}"


def _matches(header: str | None, etag: str) -> bool:
    if header is None:
        return False
    wanted = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in wanted or etag in wanted


def _span(request: Request, artifact: Artifact, etag: str) -> Span | None:
    """Return the range to send; None: the whole.

    Several ranges in one request are answered with the whole, as the standard allows.

    Raises:
        Problem: 416.
    """
    header = request.headers.get("range")
    if header is None or request.headers.get("if-range", etag) != etag:
        return None
    found = _RANGE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    size = artifact.size
    if first == "":
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
    if last and first and int(last) < int(first):
        return None
    if start >= end:
        raise Problem(
            416,
            "range_not_satisfiable",
            f"The range {header[:60]} lies outside the file's {size} bytes.",
            fix=f"Ask for bytes below {size}.",
            headers={"Content-Range": f"bytes */{size}"},
        )
    return Span(start, end)
