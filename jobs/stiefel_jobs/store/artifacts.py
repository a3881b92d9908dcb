"""Artifacts: named files of a tenant. Their bytes are blobs, which several may share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from stiefel_jobs.database import Database
from stiefel_jobs.errors import LimitError, NotFoundError, StoreError
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import Artifact, Blob, NewArtifact, Page
from stiefel_jobs.states import TERMINAL, State
from stiefel_jobs.store.changes import keep_blobs
from stiefel_jobs.tables import artifacts, blobs, job_inputs, jobs


def add_artifact(
    db: Database,
    *,
    tenant: str,
    new: NewArtifact,
    ttl_s: float | None = None,
    max_stored: int | None = None,
) -> Artifact:
    """Name bytes that are in the store already.

    Raises:
        LimitError: the tenant's artifacts would sum to more than ``max_stored`` bytes.
    """
    with db.write() as connection:
        return insert_artifact(
            connection, db, tenant=tenant, new=new, ttl_s=ttl_s, max_stored=max_stored
        )


def insert_artifact(
    connection: Connection,
    db: Database,
    *,
    tenant: str,
    new: NewArtifact,
    ttl_s: float | None,
    max_stored: int | None = None,
) -> Artifact:
    """Do the same inside a caller's transaction."""
    keep_blobs(connection, db, tenant, [Blob(new.sha256, new.size)])
    if max_stored is not None and stored_bytes(connection, tenant) > max_stored:
        raise LimitError(
            f"The tenant's files would take more than {max_stored} bytes.",
            code="storage_full",
            fix="Delete artifacts that are no longer needed, or ask for a higher quota.",
        )
    values = {
        "id": new_id("art"),
        "tenant": tenant,
        "kind": new.kind,
        "name": new.name,
        "sha256": new.sha256,
        "size": new.size,
        "meta": dict(new.meta),
        "created_at": db.now,
        "expires_at": None if ttl_s is None else db.now + ttl_s,
    }
    row = connection.execute(insert(artifacts).values(**values).returning(artifacts)).one()
    return _record(row)


def get_artifact(db: Database, *, tenant: str, artifact_id: str) -> Artifact:
    """Return a tenant's artifact.

    Raises:
        NotFoundError: unknown, another tenant's, or expired.
    """
    query = select(artifacts).where(artifacts.c.id == artifact_id, _visible(db, tenant))
    with db.read() as connection:
        row = connection.execute(query).first()
    if row is None:
        raise _missing(artifact_id)
    return _record(row)


def list_artifacts(
    db: Database,
    *,
    tenant: str,
    job_id: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Page[Artifact]:
    """Return a tenant's artifacts, newest first."""
    query = select(artifacts).where(_visible(db, tenant)).order_by(artifacts.c.id.desc())
    if job_id is not None:
        query = query.where(artifacts.c.job_id == job_id)
    if after is not None:
        query = query.where(artifacts.c.id < after)
    with db.read() as connection:
        rows = connection.execute(query.limit(limit + 1)).all()
    items = [_record(row) for row in rows[:limit]]
    return Page(items, items[-1].id if len(rows) > limit else None)


def reuse_artifact(
    db: Database, *, tenant: str, sha256: str, name: str, ttl_s: float | None
) -> Artifact | None:
    """Return the tenant's newest artifact of these bytes and this name, None if there is none.

    It lives from now on at least as long as one just uploaded would: found and prolonged in one
    transaction, whoever uploads the bytes again never gets an artifact that is about to expire.
    """
    same = (artifacts.c.sha256 == sha256) & (artifacts.c.name == name) & _visible(db, tenant)
    newest = select(artifacts).where(same).order_by(artifacts.c.id.desc()).limit(1)
    with db.write() as connection:
        row = connection.execute(newest.with_for_update()).first()
        if row is None:
            return None
        prolong = update(artifacts).where(artifacts.c.id == row.id).returning(artifacts)
        if ttl_s is None:
            prolong = prolong.values(expires_at=None)
        else:
            # An artifact without an end has NULL here, which is not before any time: it stays.
            end = db.now + ttl_s
            prolong = prolong.where(artifacts.c.expires_at < end).values(expires_at=end)
        return _record(connection.execute(prolong).first() or row)


def delete_artifact(db: Database, *, tenant: str, artifact_id: str) -> None:
    """Forget an artifact; its bytes go later, if nothing else names them.

    Raises:
        NotFoundError: unknown, another tenant's, or expired.
        StoreError: ``artifact_in_use``: an unfinished job reads it.
    """
    this = artifacts.c.id == artifact_id
    with db.write() as connection:
        query = select(artifacts.c.id).where(this, _visible(db, tenant)).with_for_update()
        if connection.execute(query).first() is None:
            raise _missing(artifact_id)
        user = connection.execute(readers().where(job_inputs.c.artifact_id == artifact_id)).first()
        if user is not None:
            raise StoreError(
                f"Artifact {artifact_id} is an input of job {user.job_id}.",
                code="artifact_in_use",
                fix=f"Cancel job {user.job_id} or wait until it has ended.",
            )
        connection.execute(delete(artifacts).where(this))


def stored_bytes(connection: Connection, tenant: str) -> int:
    """Return the bytes a tenant's blobs take up, each counted once."""
    query = select(func.coalesce(func.sum(blobs.c.size), 0)).where(blobs.c.tenant == tenant)
    return int(connection.execute(query).scalar_one())


def readers() -> Select[Any]:
    """Select unfinished jobs with their inputs."""
    live = [state for state in State if state not in TERMINAL]
    join = job_inputs.join(jobs, jobs.c.id == job_inputs.c.job_id)
    return select(job_inputs.c.job_id).select_from(join).where(jobs.c.state.in_(live))


def _visible(db: Database, tenant: str) -> ColumnElement[bool]:
    unexpired = or_(artifacts.c.expires_at.is_(None), artifacts.c.expires_at > db.now)
    return (artifacts.c.tenant == tenant) & unexpired


def _missing(artifact_id: str) -> NotFoundError:
    return NotFoundError(f"Artifact {artifact_id} does not exist.", code="artifact_not_found")


def _record(row: Row[Any]) -> Artifact:
    return Artifact(**{name: getattr(row, name) for name in Artifact.__dataclass_fields__})
