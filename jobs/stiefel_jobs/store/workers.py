"""Which workers are there: each reports itself with its heartbeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select

from stiefel_jobs.database import Database
from stiefel_jobs.records import Worker
from stiefel_jobs.settings import GIB
from stiefel_jobs.store.changes import upsert
from stiefel_jobs.tables import workers

#: Under which name a worker's ``devices`` tell the bytes that one job of a queue may have.
MEMORY = "memory_bytes"
MEMORY_FIELDS = {"cuda": "cuda_memory_bytes"}


def report_worker(
    db: Database,
    *,
    worker: str,
    host: str,
    queues: Sequence[str],
    version: str,
    devices: Mapping[str, Any] | None = None,
    draining: bool = False,
) -> None:
    """Register a worker, or refresh what is known of it."""
    values = {
        "host": host,
        "queues": list(queues),
        "devices": dict(devices or {}),
        "version": version,
        "draining": draining,
        "seen_at": db.now,
    }
    with db.write() as connection:
        connection.execute(
            upsert(db, workers)
            .values(id=worker, started_at=db.now, **values)
            .on_conflict_do_update(index_elements=[workers.c.id], set_=values)
        )


def list_workers(
    db: Database, *, queue: str | None = None, seen_within_s: float = 60.0
) -> list[Worker]:
    """Return the workers heard of lately: all, or those that serve ``queue``."""
    columns = [workers.c[name] for name in Worker.__dataclass_fields__]
    query = select(*columns).where(workers.c.seen_at >= db.now - seen_within_s)
    with db.read() as connection:
        found = [Worker(*row) for row in connection.execute(query.order_by(workers.c.id))]
    return [worker for worker in found if queue is None or queue in worker.queues]


def largest_share(db: Database, queue: str) -> int | None:
    """Return the most memory that one job of ``queue`` may have on any worker heard of lately.

    None where no worker of the queue is known, or one does not say.
    """
    field = MEMORY_FIELDS.get(queue, MEMORY)
    shares = [worker.devices.get(field) for worker in list_workers(db, queue=queue)]
    known = [share for share in shares if isinstance(share, int)]
    return max(known) if known and len(known) == len(shares) else None


def too_large(needed: int, share: int) -> dict[str, str]:
    """Say that a job fits no worker, with both figures and what can be done."""
    return {
        "code": "too_large",
        "detail": f"The job needs about {needed / GIB:.1f} GiB of memory; the largest worker "
        f"gives one job {share / GIB:.1f} GiB.",
        "fix": "Choose a smaller job (batch_size, a smaller network, fewer or smaller tensors), "
        "or start a larger worker.",
    }


def forget_worker(db: Database, *, worker: str) -> None:
    """Take a worker that shuts down off the list."""
    with db.write() as connection:
        connection.execute(delete(workers).where(workers.c.id == worker))
