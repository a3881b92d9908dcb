"""Resumable uploads: an intent with a deadline, and parts that lie in the store until complete.

Which parts have arrived is read from the store itself, because a client sends them straight
there where the store allows it. Part ``n`` is the object ``{staging}/{n:06d}``.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database
from stiefel_jobs.errors import NotFoundError, UploadError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import Artifact, NewArtifact, Upload, UploadPart
from stiefel_jobs.store.artifacts import get_artifact, insert_artifact
from stiefel_jobs.tables import uploads

#: Object stores take at most this many parts per file; part sizes grow to stay below it.
MAX_PARTS = 10_000


def create_upload(
    db: Database,
    *,
    tenant: str,
    filename: str,
    size: int,
    part_size: int,
    ttl_s: float,
    sha256: str | None = None,
) -> Upload:
    """Announce a file of ``size`` bytes; its parts may arrive until ``ttl_s`` seconds from now."""
    upload_id = new_id("upl")
    smallest = -(-size // MAX_PARTS)
    values = {
        "id": upload_id,
        "tenant": tenant,
        "filename": filename,
        "size": size,
        "sha256": sha256,
        "part_size": max(part_size, -(-smallest // 2**20) * 2**20),
        "state": "open",
        "staging": f"staging/uploads/{upload_id}",
        "meta": {},
    }
    with db.write() as connection:
        row = connection.execute(
            insert(uploads)
            .values(**values, created_at=db.now, expires_at=db.now + ttl_s)
            .returning(uploads)
        ).one()
    return _record(row)


def get_upload(db: Database, *, tenant: str, upload_id: str) -> Upload:
    """Return an upload, without its parts.

    Raises:
        NotFoundError: unknown or another tenant's.
        UploadError: ``upload_expired``.
    """
    with db.read() as connection:
        return _owned(connection, db, tenant, upload_id)


def part_count(upload: Upload) -> int:
    """Return of how many parts the file consists; an empty one has one empty part."""
    return max(1, -(-upload.size // upload.part_size))


def part_length(upload: Upload, number: int) -> int:
    """Return how many bytes part ``number``, counted from 1, must have.

    Raises:
        UploadError: ``part_unknown``: the file has no such part.
    """
    count = part_count(upload)
    if not 1 <= number <= count:
        raise UploadError(
            f"Upload {upload.id} has parts 1 to {count}, no part {number}.",
            code="part_unknown",
            fix=f"Split the file into {count} parts of {upload.part_size} bytes.",
        )
    return min(upload.part_size, upload.size - (number - 1) * upload.part_size)


def part_key(upload: Upload, number: int) -> str:
    """Return where part ``number`` lies in the store."""
    return f"{upload.staging}/{number:06d}"


def received_parts(store: Blobs, upload: Upload) -> tuple[UploadPart, ...]:
    """Return the parts that have arrived whole, in order."""
    found = ((int(s.key.rsplit("/", 1)[1]), s.size) for s in store.list(upload.staging))
    count = part_count(upload)
    return tuple(
        UploadPart(number, size, None, None)
        for number, size in found
        if number <= count and size == part_length(upload, number)
    )


def complete_upload(
    db: Database,
    *,
    tenant: str,
    upload_id: str,
    new: NewArtifact,
    ttl_s: float | None,
    max_stored: int | None = None,
) -> Artifact:
    """Turn an upload, whose assembled bytes are in the store, into an artifact: once.

    Raises:
        NotFoundError: unknown or another tenant's.
        UploadError: ``upload_expired`` or ``upload_aborted``.
        LimitError: the tenant's quota of stored bytes is used up.
    """
    with db.write() as connection:
        upload = _owned(connection, db, tenant, upload_id, lock=True)
        if upload.state == "open":
            artifact = insert_artifact(
                connection, db, tenant=tenant, new=new, ttl_s=ttl_s, max_stored=max_stored
            )
            connection.execute(
                update(uploads)
                .where(uploads.c.id == upload_id)
                .values(state="completed", artifact_id=artifact.id)
            )
            return artifact
    if upload.artifact_id is None:
        raise UploadError(f"Upload {upload_id} was aborted.", code="upload_aborted", fix=_AGAIN)
    return get_artifact(db, tenant=tenant, artifact_id=upload.artifact_id)


def abort_upload(db: Database, *, tenant: str, upload_id: str) -> Upload:
    """Give an upload up; one that is complete stays so.

    Raises:
        NotFoundError: unknown or another tenant's.
    """
    mine = (uploads.c.id == upload_id) & (uploads.c.tenant == tenant)
    with db.write() as connection:
        connection.execute(
            update(uploads).where(mine, uploads.c.state == "open").values(state="aborted")
        )
        row = connection.execute(select(uploads).where(mine)).first()
    if row is None:
        raise _missing(upload_id)
    return _record(row)


def drop_parts(store: Blobs, upload: Upload) -> None:
    """Remove the parts from the store."""
    for stored in store.list(upload.staging):
        store.discard(stored.key)


_AGAIN = "Create a new upload with POST /v1/uploads."


def _owned(
    connection: Connection, db: Database, tenant: str, upload_id: str, *, lock: bool = False
) -> Upload:
    query = select(uploads, (uploads.c.expires_at <= db.now).label("expired")).where(
        uploads.c.id == upload_id, uploads.c.tenant == tenant
    )
    row = connection.execute(query.with_for_update() if lock else query).first()
    if row is None:
        raise _missing(upload_id)
    if row.expired and row.state == "open":
        raise UploadError(f"Upload {upload_id} has expired.", code="upload_expired", fix=_AGAIN)
    return _record(row)


def _missing(upload_id: str) -> NotFoundError:
    return NotFoundError(f"Upload {upload_id} does not exist.", code="upload_not_found")


def _record(row: Row[Any]) -> Upload:
    names = [name for name in Upload.__dataclass_fields__ if name != "parts"]
    return Upload(**{name: getattr(row, name) for name in names}, parts=())
