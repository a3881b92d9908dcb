"""Reported checkpoints become durable one at a time; only the newest waiting one counts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future

from stiefel_jobs.errors import StaleFenceError
from stiefel_worker.scratch import Scratch, UnsafePathError
from stiefel_worker.uploads import Snapshot

PACE_S = 0.25
#: Uploads take at most one part in so many of the time, as long as the wait stays bearable.
REST = 50
REST_S = 30.0
log = logging.getLogger(__name__)


class Checkpointer:
    """Coalesces checkpoints: while one is uploaded, the next waits and may be overtaken.

    Args:
        commit: uploads a snapshot and writes it under the fence; runs on ``courier``.
    """

    def __init__(
        self, scratch: Scratch, courier: Executor, commit: Callable[[Snapshot], None]
    ) -> None:
        self._scratch = scratch
        self._courier = courier
        self._commit = commit
        self._waiting: Snapshot | None = None
        self._running: Future[None] | None = None
        self._began = 0.0
        self._due = 0.0

    @property
    def settled(self) -> bool:
        """Whether every reported checkpoint is durable, overtaken, or given up."""
        return self._waiting is None and self._running is None

    def offer(self, step: int, sizes: Mapping[str, int]) -> None:
        """Take note of a checkpoint that the child reported."""
        try:
            snapshot = Snapshot(self._scratch, step, sizes)
        except FileNotFoundError as error:
            # The method has already moved on; its next checkpoint names the files that remain.
            log.info("checkpoint %d overtaken: %s is gone", step, error.filename)
            return
        if self._waiting is not None:
            self._waiting.close()
        self._waiting = snapshot

    def advance(self, *, at_once: bool = False) -> None:
        """Start the waiting upload when the one before is done and the job had its rest.

        What a job loses with its process is then seconds; what it loses to uploads, a few percent.

        Raises:
            StaleFenceError: the job has moved on.
            UnsafePathError: the child broke the protocol.
        """
        now = time.monotonic()
        if self._running is not None and self._running.done():
            finished, self._running = self._running, None
            took = now - self._began
            self._due = now + max(PACE_S, took, min(REST * took, REST_S))
            _report(finished)
        if self._running is None and self._waiting is not None and (at_once or now >= self._due):
            snapshot, self._waiting = self._waiting, None
            self._began = now
            self._running = self._courier.submit(self._keep, snapshot)

    def close(self) -> None:
        """Drop what waits."""
        if self._waiting is not None:
            self._waiting.close()
            self._waiting = None

    def _keep(self, snapshot: Snapshot) -> None:
        try:
            self._commit(snapshot)
        finally:
            snapshot.close()


def _report(finished: Future[None]) -> None:
    """A store that is away costs a checkpoint, not the run: the next one includes its bytes."""
    error = finished.exception()
    if isinstance(error, (StaleFenceError, UnsafePathError)):
        raise error
    if error is not None:
        log.warning("a checkpoint was lost: %s: %s", type(error).__name__, error)
