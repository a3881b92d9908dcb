"""Jobs in any state, and a clock that can be set forward. No test of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert

from stiefel_jobs.database import Database
from stiefel_jobs.ids import new_id
from stiefel_jobs.records import Blob, Claim, Event, Job, NewArtifact, Submission
from stiefel_jobs.states import NEXT, Blame, State
from stiefel_jobs.store.actions import cancel, pause
from stiefel_jobs.store.changes import keep_blobs
from stiefel_jobs.store.claim import claim
from stiefel_jobs.store.finish import begin_finalizing, fail, finish, release
from stiefel_jobs.store.queries import events, get_job
from stiefel_jobs.store.submit import submit
from stiefel_jobs.store.sweep import sweep
from stiefel_jobs.tables import artifacts

TENANT = "acme"
ERROR = {"code": "broken", "detail": "It broke.", "fix": "Mend it."}


@dataclass
class Yard:
    """One database and shorthands for the store's verbs, for a single tenant."""

    db: Database

    def __post_init__(self) -> None:
        self._clock = self.db.now
        self._ahead = 0.0

    def advance(self, seconds: float) -> None:
        """Let the database's clock run ahead by this much more."""
        self._ahead += seconds
        self.db.now = self._clock + self._ahead

    def submit(self, *, tenant: str = TENANT, **values: Any) -> Job:
        submission = Submission(**{"method": "project.unitary", "spec": {"seed": 1}, **values})
        return submit(self.db, tenant=tenant, submission=submission).job

    def claim(self, *, worker: str = "w1", job_id: str | None = None, lease_s: float = 30) -> Claim:
        taken = claim(self.db, worker=worker, queues=["cpu"], job_id=job_id, lease_s=lease_s)
        assert taken is not None
        return taken

    def no_claim(self, **options: Any) -> bool:
        return claim(self.db, **{"worker": "w1", "queues": ["cpu"], **options}) is None

    def started(self, **values: Any) -> Claim:
        """Submit a job and claim it."""
        return self.claim(job_id=self.submit(**values).id)

    def get(self, job_id: str) -> Job:
        return get_job(self.db, tenant=TENANT, job_id=job_id)

    def events(self, job_id: str) -> list[Event]:
        return events(self.db, tenant=TENANT, job_id=job_id)

    def artifact(self, *, tenant: str = TENANT, ttl_s: float | None = None) -> str:
        """An uploaded artifact, as the upload routes would leave it."""
        artifact_id, digest = new_id("art"), "ab" * 32
        with self.db.write() as connection:
            keep_blobs(connection, self.db, tenant, [Blob(digest, 7)])
            connection.execute(
                insert(artifacts).values(
                    id=artifact_id,
                    tenant=tenant,
                    kind="upload",
                    name="model.safetensors",
                    sha256=digest,
                    size=7,
                    meta={},
                    created_at=self.db.now,
                    expires_at=None if ttl_s is None else self.db.now + ttl_s,
                )
            )
        return artifact_id

    def in_state(self, state: State, **values: Any) -> Claim:
        """A job brought to ``state`` the way a user would meet it; the claim may be stale."""
        if state is State.EXPIRED:
            values["deadline_s"] = 1.0
        job = self.submit(**values)
        taken = self.claim(job_id=job.id, lease_s=3600) if state in _CLAIMED else _unclaimed(job)
        getattr(self, f"_to_{state}", lambda _: None)(taken)
        assert self.get(job.id).state is state
        return taken

    def _to_paused(self, taken: Claim) -> None:
        pause(self.db, tenant=TENANT, job_id=taken.job_id)

    def _to_cancelled(self, taken: Claim) -> None:
        cancel(self.db, tenant=TENANT, job_id=taken.job_id)

    def _to_expired(self, taken: Claim) -> None:
        self.advance(2.0)
        sweep(self.db)

    def _to_pausing(self, taken: Claim) -> None:
        pause(self.db, tenant=TENANT, job_id=taken.job_id)

    def _to_cancelling(self, taken: Claim) -> None:
        cancel(self.db, tenant=TENANT, job_id=taken.job_id)

    def _to_finalizing(self, taken: Claim) -> None:
        begin_finalizing(self.db, **held(taken))

    def _to_succeeded(self, taken: Claim) -> None:
        begin_finalizing(self.db, **held(taken))
        finish(self.db, **held(taken), artifacts=[output()], result={})

    def _to_failed(self, taken: Claim) -> None:
        fail(self.db, **held(taken), reason="bad", blame=Blame.USER, error=ERROR, retry=False)


_CLAIMED = {
    State.RUNNING,
    State.PAUSING,
    State.CANCELLING,
    State.FINALIZING,
    State.SUCCEEDED,
    State.FAILED,
}


def _unclaimed(job: Job) -> Claim:
    return Claim(
        job_id=job.id,
        tenant=job.tenant,
        method=job.method,
        spec=job.spec,
        inputs={},
        queue=job.queue,
        fence=job.fence,
        attempt=0,
        checkpoint=None,
        deadline_at=None,
        seconds_left=None,
        output_ttl_s=None,
        traceparent=None,
    )


def held(taken: Claim) -> dict[str, Any]:
    """What every fenced verb asks for."""
    return {"job_id": taken.job_id, "fence": taken.fence}


def output(name: str = "model.safetensors", digest: str = "cd" * 32) -> NewArtifact:
    return NewArtifact(kind="model", name=name, sha256=digest, size=11)


def drain(db: Database, taken: Claim) -> State:
    return release(db, **held(taken), to=State.QUEUED, reason="drained")


def check_history(story: list[Event]) -> None:
    """No gap in the sequence, and no transition that the state machine does not know."""
    assert [event.seq for event in story] == list(range(1, len(story) + 1))
    assert [event.at for event in story] == sorted(event.at for event in story)
    state = None
    for event in story:
        if event.type == "job.status":
            assert event.data["previous"] == state
            assert state is None or event.data["state"] in NEXT[State(state)]
            state = event.data["state"]
