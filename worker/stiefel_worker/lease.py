"""The hold of one supervisor on its job: every write under its fence, and the wishes it hears."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sqlalchemy.exc import DBAPIError

from stiefel_jobs.database import Database
from stiefel_jobs.records import Claim, NewArtifact, NewEvent, Point, Progress, StateFile
from stiefel_jobs.settings import Settings
from stiefel_jobs.states import State
from stiefel_jobs.store import claim as claims
from stiefel_jobs.store import finish as ends
from stiefel_jobs.store import progress as reports
from stiefel_worker.endings import Failure

WISH_S = 0.25  # a cancel must be seen, asked and enforced within two seconds
PATIENCE_S = 600.0

T = TypeVar("T")
log = logging.getLogger(__name__)


class Lease:
    """Writes for one attempt. All raise StaleFenceError once the job has moved on.

    What must not be lost waits for a database that is away; what comes again anyway does not.
    """

    def __init__(self, db: Database, settings: Settings, claim: Claim) -> None:
        self._db = db
        self._settings = settings
        self._job_id = claim.job_id
        self._fence = claim.fence
        self._beat_at = time.monotonic() + settings.beat_s
        self._wish_at = time.monotonic() + WISH_S

    def wish(self) -> State | None:
        """Renew when it is time; what is wanted of the job, or None when it is too soon to ask."""
        now = time.monotonic()
        beat = now >= self._beat_at
        if not beat and now < self._wish_at:
            return None
        self._wish_at = now + WISH_S
        try:
            return self._renew(now) if beat else self._ask()
        except DBAPIError as error:
            log.warning("job %s: database away: %s", self._job_id, brief(error))
            self._wish_at = now + 1.0
            return None

    def record(
        self, progress: Progress | None, metrics: Sequence[Point], events: Sequence[NewEvent]
    ) -> bool:
        """Write reports; False when the database is away.

        Raises:
            DBAPIError: the database refused what was reported.
        """
        try:
            reports.record(
                self._db,
                job_id=self._job_id,
                fence=self._fence,
                progress=progress,
                metrics=metrics,
                events=events,
            )
        except DBAPIError as error:
            if not passing(error):
                raise
            log.warning("job %s: report delayed: %s", self._job_id, brief(error))
            return False
        return True

    def checkpoint(self, step: int, files: Sequence[StateFile]) -> None:
        """Commit a checkpoint whose segments are in the store."""
        reports.checkpoint(self._db, job_id=self._job_id, fence=self._fence, step=step, files=files)

    def begin_finalizing(self) -> State:
        """Announce the end of the work; FINALIZING, or the wish that came first."""
        return patiently(
            lambda: ends.begin_finalizing(self._db, job_id=self._job_id, fence=self._fence)
        )

    def finish(
        self, artifacts: Sequence[NewArtifact], result: Mapping[str, Any], *, keep: bool
    ) -> None:
        """Commit the results; ``keep`` the last checkpoints beside them."""
        patiently(
            lambda: ends.finish(
                self._db,
                job_id=self._job_id,
                fence=self._fence,
                artifacts=artifacts,
                result=result,
                keep_checkpoints=keep,
            )
        )

    def fail(self, failure: Failure) -> State:
        """End the attempt as failed; the store decides whether there is another."""
        return patiently(
            lambda: ends.fail(
                self._db,
                job_id=self._job_id,
                fence=self._fence,
                reason=failure.reason,
                blame=failure.blame,
                error=failure.error,
                retry=failure.retry,
            )
        )

    def outgrow(self, needed: int, share: int) -> State:
        """Leave the job to a larger worker, or fail it where there is none."""
        return patiently(
            lambda: ends.outgrow(
                self._db, job_id=self._job_id, fence=self._fence, needed=needed, share=share
            )
        )

    def release(self, to: State, reason: str) -> State:
        """Hand the job back unfinished; the state it went to."""
        return patiently(
            lambda: ends.release(
                self._db, job_id=self._job_id, fence=self._fence, to=to, reason=reason
            )
        )

    def _renew(self, now: float) -> State:
        self._beat_at = now + 1.0  # sooner again after a failure
        state = claims.renew(
            self._db, job_id=self._job_id, fence=self._fence, lease_s=self._settings.lease_s
        )
        self._beat_at = now + self._settings.beat_s
        return state

    def _ask(self) -> State:
        return claims.wanted(self._db, job_id=self._job_id, fence=self._fence)


def patiently(action: Callable[[], T]) -> T:
    """Do ``action``, again and again while the database is away, for ten minutes at most.

    Raises:
        DBAPIError: the database stayed away, or refused the statement itself.
    """
    give_up = time.monotonic() + PATIENCE_S
    pause = 0.2
    while True:
        try:
            return action()
        except DBAPIError as error:
            if time.monotonic() > give_up or not passing(error):
                raise
            log.warning("database away, trying again: %s", brief(error))
        time.sleep(pause)
        pause = min(5.0, pause * 2)


def passing(error: DBAPIError) -> bool:
    """Whether the connection is at fault rather than the statement."""
    kind = type(error).__name__
    return error.connection_invalidated or kind in {"OperationalError", "InterfaceError"}


def brief(error: DBAPIError) -> str:
    """The first line of the driver's own words: no statement, no parameters."""
    return (str(error.orig).splitlines() or [type(error).__name__])[0]
