"""Collect what nobody names any more: expired artifacts and uploads, then bytes.

Mark and sweep. Rows go first, bytes after: a crash in between leaves an orphan for the next
run, never a row without bytes. Nothing younger than the grace period is touched, so that a
writer who has stored bytes has time to commit the row that names them (see ``Blobs``).
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, exists, select, tuple_

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database
from stiefel_jobs.states import TERMINAL
from stiefel_jobs.store.artifacts import readers
from stiefel_jobs.store.progress import drop_checkpoints
from stiefel_jobs.tables import (
    artifacts,
    blobs,
    checkpoint_segments,
    checkpoints,
    job_inputs,
    jobs,
    uploads,
)

GRACE_S = 86400.0
#: How long a failed or cancelled job can still be retried from its last checkpoint.
RETRY_S = 7 * 86400.0
_BATCH = 500


def collect_garbage(db: Database, store: Blobs, *, grace_s: float = GRACE_S) -> int:
    """Delete expired artifacts and uploads, then bytes that nothing names; return how many blobs.

    Cost: one listing of the store. Safe to run in several processes at once.
    """
    with db.write() as connection:
        _delete_expired(connection, db)
        _drop_old_checkpoints(connection, db)
    removed = 0
    while batch := _forget_blobs(db, grace_s):
        for tenant, sha256 in batch:
            # A blob written again since its row went belongs to a row still to come.
            removed += _remove(store, store.key(tenant, sha256), grace_s)
    _remove_staged(db, store, grace_s)
    return removed + _remove_orphans(db, store, grace_s)


def _delete_expired(connection: Connection, db: Database) -> None:
    used = readers().where(job_inputs.c.artifact_id == artifacts.c.id).correlate(artifacts)
    connection.execute(delete(artifacts).where(artifacts.c.expires_at <= db.now, ~exists(used)))
    connection.execute(delete(uploads).where(uploads.c.expires_at <= db.now))


def _drop_old_checkpoints(connection: Connection, db: Database) -> None:
    over = select(jobs.c.id).where(
        jobs.c.state.in_(TERMINAL), jobs.c.finished_at <= db.now - RETRY_S
    )
    held = select(checkpoints.c.job_id).where(checkpoints.c.job_id.in_(over)).distinct()
    for job_id in connection.execute(held).scalars().all():
        drop_checkpoints(connection, job_id)


def _forget_blobs(db: Database, grace_s: float) -> list[tuple[str, str]]:
    def named_by(table: Any) -> ColumnElement[bool]:
        same = (table.c.tenant == blobs.c.tenant) & (table.c.sha256 == blobs.c.sha256)
        return exists(select(table.c.tenant).where(same).correlate(blobs))

    key = tuple_(blobs.c.tenant, blobs.c.sha256)
    unnamed = (
        select(blobs.c.tenant, blobs.c.sha256)
        .where(
            blobs.c.touched_at <= db.now - grace_s,
            ~named_by(artifacts),
            ~named_by(checkpoint_segments),
        )
        .limit(_BATCH)
        .with_for_update(skip_locked=True)
    )
    with db.write() as connection:
        found = [(row.tenant, row.sha256) for row in connection.execute(unnamed)]
        if found:
            connection.execute(delete(blobs).where(key.in_(found)))
    return found


def _remove_orphans(db: Database, store: Blobs, grace_s: float) -> int:
    """Remove objects without a row: of a writer that died before its commit."""
    horizon = time.time() - grace_s
    old = [s.key for s in store.list("blobs") if s.changed.timestamp() <= horizon]
    removed = 0
    for start in range(0, len(old), _BATCH):
        keys = old[start : start + _BATCH]
        known = _known(db, [(key.split("/")[1], key.rsplit("/", 1)[1]) for key in keys])
        for key in keys:
            if (key.split("/")[1], key.rsplit("/", 1)[1]) not in known:
                removed += _remove(store, key, grace_s)
    return removed


def _known(db: Database, names: list[tuple[str, str]]) -> set[tuple[str, str]]:
    key = tuple_(blobs.c.tenant, blobs.c.sha256)
    with db.read() as connection:
        rows = connection.execute(select(blobs.c.tenant, blobs.c.sha256).where(key.in_(names)))
        return {(row.tenant, row.sha256) for row in rows}


def _remove(store: Blobs, key: str, grace_s: float) -> int:
    """Remove an object unless it was written anew; return how many went.

    What is written anew between the look and the removal is lost: one round trip, and only for
    bytes that nobody named for a whole grace period. No store removes on condition of an age (an
    ETag is that of the bytes, the same as before), and no lock in the database would help, since
    writers name bytes only after they have written them.
    """
    found = store.look(key)
    if found is None or (datetime.now(UTC) - found.changed).total_seconds() < grace_s:
        return 0
    store.discard(key)
    return 1


def _remove_staged(db: Database, store: Blobs, grace_s: float) -> None:
    """Remove parts of uploads that are over, and streams whose reader died."""
    horizon = time.time() - grace_s
    with db.read() as connection:
        query = select(uploads.c.staging).where(uploads.c.state == "open")
        live = set(connection.execute(query).scalars())
    for stored in store.list("staging"):
        if stored.changed.timestamp() <= horizon and stored.key.rsplit("/", 1)[0] not in live:
            store.discard(stored.key)
