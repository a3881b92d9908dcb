"""Ringing for new work beside the request, not in it.

A request hands over the job's id and goes on; a thread rings and notes in the outbox that the
message went out. What it misses (a broker that is down, a crash) the sweeper rings again.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from stiefel_jobs.database import Database
from stiefel_jobs.doorbell import Doorbell
from stiefel_jobs.store import outbox

log = logging.getLogger(__name__)


class Ringer:
    """One thread that rings.

    Args:
        db: where the outbox is.
        build: makes the doorbell, in the thread: importing the messaging library takes a while.
    """

    def __init__(self, db: Database, build: Callable[[], Doorbell]) -> None:
        self._db = db
        self._build = build
        self._due: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ringer", daemon=True)

    def start(self) -> None:
        """Begin to ring."""
        self._thread.start()

    def ring(self, job_id: str) -> None:
        """Ring for a job soon; returns at once."""
        self._due.put(job_id)

    def close(self) -> None:
        """Ring for what is due, then end."""
        self._due.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    def _run(self) -> None:
        doorbell = self._build()
        while (job_id := self._due.get()) is not None:
            try:
                outbox.flush(self._db, doorbell.ring, job_id=job_id)
            except Exception:  # the sweeper will ring again; this thread must live
                log.exception("cannot ring for %s", job_id)
