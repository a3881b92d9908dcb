"""Messages that a transaction promised: rung after its commit, at least once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlalchemy import delete, select, update

from stiefel_jobs.database import Database
from stiefel_jobs.records import OutboxRow
from stiefel_jobs.tables import outbox

#: Sent rows are kept this long, for whoever looks into a lost ring.
SENT_KEPT_S = 3600.0


def unsent(
    db: Database, *, limit: int = 100, older_than_s: float = 0.0, job_id: str | None = None
) -> list[OutboxRow]:
    """Return messages that are due and that nobody has confirmed yet, oldest first."""
    columns = [outbox.c[name] for name in OutboxRow.__dataclass_fields__]
    due = outbox.c.due_at <= db.now - older_than_s
    query = select(*columns).where(outbox.c.sent_at.is_(None), due)
    query = query.order_by(outbox.c.id).limit(limit)
    if job_id is not None:
        query = query.where(outbox.c.job_id == job_id)
    with db.read() as connection:
        return [OutboxRow(*row) for row in connection.execute(query)]


def mark_sent(db: Database, ids: Sequence[int]) -> None:
    """Confirm that the messages have been handed to the broker."""
    if ids:
        with db.write() as connection:
            connection.execute(update(outbox).where(outbox.c.id.in_(ids)).values(sent_at=db.now))


def flush(
    db: Database,
    ring: Callable[[str, str], bool],
    *,
    job_id: str | None = None,
    older_than_s: float = 0.0,
) -> int:
    """Ring for unsent messages, confirm those the broker took, and return how many these are."""
    rows = unsent(db, job_id=job_id, older_than_s=older_than_s)
    sent = [row.id for row in rows if ring(row.queue, row.job_id)]
    mark_sent(db, sent)
    return len(sent)


def forget_sent(db: Database) -> None:
    """Delete messages sent long ago."""
    with db.write() as connection:
        connection.execute(delete(outbox).where(outbox.c.sent_at < db.now - SENT_KEPT_S))
