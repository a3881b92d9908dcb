"""Files to and from the service: resumable, hashed, never whole in memory.

An upload sends the file's sha256 first, so that bytes already owned are not sent again,
and asks which parts have arrived before it sends any. A download grows a part file, named by
the digest too, goes on behind its last byte after a break, and renames it only when the
digest is right.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urljoin, urlsplit

import httpx

from stiefel_client import calls
from stiefel_client.errors import NotFoundError, StiefelApiError, TransferError, error_from
from stiefel_client.journal import Journal
from stiefel_client.models import Artifact, Job, Upload, UploadPart
from stiefel_client.transport import OnBytes, Transport

BLOCK = 2**20
URLS_LAST = 600.0  # seconds after which presigned URLs are asked for anew
#: Refusals of a request that say nothing about the upload: the key, its right, the pace.
_PASSING = frozenset({401, 403, 408, 429})


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """Hex digest of a file, streamed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            if on_bytes:
                on_bytes(len(block))
    return digest.hexdigest()


def upload(client: Transport, path: Path, *, on_bytes: OnBytes | None = None) -> Artifact:
    """Upload a file; see ``Uploads.upload``."""
    if not path.is_file():
        raise TransferError(f"{path} is no file", fix="Give the path of a readable file")
    size, digest = path.stat().st_size, sha256_of(path)
    journal = Journal(client.service.url, path.name, digest)
    begun = _unfinished(client, journal) or client.call(
        calls.create_upload(path.name, size=size, sha256=digest)
    )
    if isinstance(begun, Upload):
        journal.write(begun.id)
        try:
            _send_parts(client, path, begun, size, on_bytes)
            begun = client.call(calls.complete_upload(begun.id))
        except StiefelApiError as error:
            if error.status < 500 and error.status not in _PASSING:
                journal.forget()
            raise
        journal.forget()
    if begun.sha256 != digest:
        raise TransferError(
            f"the service holds {path.name} with sha256 {begun.sha256}, sent was {digest}",
            fix="The file changed while it was sent; upload it again",
        )
    if on_bytes:
        on_bytes(size, size)
    return begun


def _unfinished(client: Transport, journal: Journal) -> Upload | None:
    """The upload of the same file that a crash left behind, if it can still be completed.

    One that is complete is announced anew like any file: the service then names the artifact it
    became, if that has not been deleted, and sees to it that it does not expire soon.
    """
    upload_id = journal.read()
    if upload_id is None:
        return None
    try:
        begun = client.call(calls.get_upload(upload_id))
    except NotFoundError:
        begun = None
    if begun is None or begun.status != "open":
        journal.forget()
        return None
    return begun


def _send_parts(
    client: Transport, path: Path, begun: Upload, size: int, on_bytes: OnBytes | None
) -> None:
    done, asked = 0, time.monotonic()
    with path.open("rb") as file:
        for number in range(1, len(begun.parts) + 1):
            if time.monotonic() - asked > URLS_LAST:
                begun, asked = client.call(calls.get_upload(begun.id)), time.monotonic()
                if begun.status != "open":
                    raise TransferError(
                        f"the upload of {path.name} was {begun.status} by another",
                        fix="Upload it again",
                    )
            part = begun.parts[number - 1]
            start = (part.number - 1) * begun.part_size
            length = min(begun.part_size, size - start)
            if not part.received:
                _send_part(client, file, part, start, length)
            done += length
            if on_bytes:
                on_bytes(done, size)


def _send_part(
    client: Transport, file: IO[bytes], part: UploadPart, start: int, length: int
) -> None:
    if part.url is None:
        raise TransferError(f"the service named no URL for part {part.number}")
    # A whole URL is presigned and carries its own right: the key stays here, and would make the
    # store refuse. A path is the service's own, below whatever its URL begins with.
    send = httpx.put if urlsplit(part.url).scheme else client.http.put
    attempt = 0
    while True:
        attempt += 1
        pause: float | None
        try:
            response = send(
                part.url,
                content=_slice(file, start, length),
                headers={"Content-Length": str(length)},
                timeout=httpx.Timeout(300.0, connect=10.0),
            )
        except httpx.TransportError as error:
            pause = client.retry.after_error(error, attempt, repeatable=True)
            if pause is None:
                raise TransferError(
                    f"part {part.number} could not be sent ({error})",
                    fix="Upload the same file again: it goes on at this part",
                ) from error
        else:
            pause = client.retry.after_answer(response, attempt, repeatable=True)
            if pause is None:
                if response.status_code >= 400:
                    raise error_from(response)
                return
        time.sleep(pause)


def _slice(file: IO[bytes], start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    while length > 0:
        block = file.read(min(BLOCK, length))
        if not block:
            raise TransferError("the file became shorter while it was sent")
        length -= len(block)
        yield block


def download_job(
    client: Transport, job: Job, folder: Path, *, on_bytes: OnBytes | None = None
) -> list[Path]:
    """Fetch every file of a finished job; see ``Jobs.download``."""
    if job.result is None or not job.result.files:
        raise TransferError(
            f"{job.id} is {job.status} and has no files", fix=f"stiefel watch {job.id}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    whole = sum(file.bytes for file in job.result.files.values())
    before, paths = 0, []
    for name, file in job.result.files.items():
        base = before

        def count(done: int, _: int, base: int = base) -> None:
            if on_bytes:
                on_bytes(base + done, whole)

        target = folder / plain_name(name)
        source = calls.job_file(job.id, name)
        paths.append(download(client, source, target, sha256=file.sha256, on_bytes=count))
        before += file.bytes
    return paths


def download(
    client: Transport,
    source: str,
    target: Path,
    *,
    sha256: str,
    on_bytes: OnBytes | None = None,
) -> Path:
    """Fetch one path of the service to ``target``; a good file stays.

    A download that broke off goes on where it stopped, in the part file of the same bytes.

    Raises:
        TransferError: other bytes came than the digest promises; the part file is removed.
    """
    if target.is_file() and sha256_of(target) == sha256:
        return target
    # Half of another file, which was to become the same target, must not be continued.
    part = target.with_name(f"{target.name}.{sha256[:16]}.part")
    attempt = 0
    while True:
        attempt += 1
        have = part.stat().st_size if part.exists() else 0
        pause: float | None
        try:
            _fetch(client, source, part, sha256, on_bytes)
            break
        except httpx.TransportError as error:
            if part.exists() and part.stat().st_size > have:
                attempt = 1  # it is moving: patience starts anew
            pause = client.retry.after_error(error, attempt, repeatable=True)
            if pause is None:
                raise TransferError(
                    f"{target.name} broke off ({error})", fix="Download again: it goes on there"
                ) from error
        except StiefelApiError as error:
            if error.status < 500 or attempt >= client.retry.attempts:
                raise
            pause = client.retry.pause(attempt)
        time.sleep(pause)
    _finish(part, target, sha256)
    return target


def _fetch(
    client: Transport, source: str, part: Path, sha256: str, on_bytes: OnBytes | None
) -> None:
    """Append the missing bytes to ``part``; starts over when the service sends the whole."""
    have = part.stat().st_size if part.exists() else 0
    with _open(client, source, have, sha256) as response:
        if response.status_code == 416:
            # Nothing lies behind what is there: the digest decides whether it is right.
            return
        if response.status_code >= 400:
            response.read()
            raise error_from(response)
        resumed = response.status_code == 206
        done = have if resumed else 0
        total = done + int(response.headers.get("content-length", 0))
        with part.open("ab" if resumed else "wb") as file:
            for block in response.iter_raw():
                file.write(block)
                done += len(block)
                if on_bytes:
                    on_bytes(done, total)


@contextmanager
def _open(client: Transport, source: str, have: int, sha256: str) -> Iterator[httpx.Response]:
    """Open a download behind its first ``have`` bytes, at the service or where it points to."""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    guard = {"If-Range": f'"{sha256}"'} if have else {}
    timeout = httpx.Timeout(60.0, connect=10.0)
    with client.http.stream("GET", source, headers=headers | guard, timeout=timeout) as response:
        if not response.has_redirect_location:
            yield response
            return
        location = urljoin(str(response.url), response.headers["location"])
    # A presigned URL carries its own right, so the key stays here. Its ETag is the store's,
    # so If-Range would always miss; the key is the content's digest and cannot change.
    with httpx.stream("GET", location, headers=headers, timeout=timeout) as response:
        yield response


def _finish(part: Path, target: Path, sha256: str) -> None:
    found = sha256_of(part)
    if found != sha256:
        part.unlink()
        raise TransferError(
            f"{target.name} arrived with sha256 {found}, promised was {sha256}",
            fix="Download it again; if it comes again, the store is damaged",
        )
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(target)


def plain_name(name: str) -> str:
    """A file name from the service as a plain name: it must not lead out of the folder."""
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise TransferError(f"the service named a file {name!r}, which is no plain name")
    return name
