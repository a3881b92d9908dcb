from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select
from yard import TENANT, Yard, check_history

from stiefel_jobs.database import Database
from stiefel_jobs.errors import IdempotencyConflictError, LimitError, NotFoundError
from stiefel_jobs.records import Submission, Submitted
from stiefel_jobs.states import State
from stiefel_jobs.store.actions import cancel
from stiefel_jobs.store.outbox import unsent
from stiefel_jobs.store.submit import KEY_KEPT_S, submit
from stiefel_jobs.store.sweep import sweep
from stiefel_jobs.tables import job_events, jobs

SUBMISSION = Submission(method="project.unitary", spec={"seed": 1})


def count(db: Database) -> int:
    with db.read() as connection:
        return connection.execute(select(func.count()).select_from(jobs)).scalar_one()


def send(db: Database, key: str | None = "k", **options: object) -> Submitted:
    arguments = {"tenant": TENANT, "submission": SUBMISSION, "idempotency_key": key, **options}
    return submit(db, **arguments)  # type: ignore[arg-type]


def test_job_event_and_ring_are_written_together(yard: Yard) -> None:
    job = yard.submit(labels={"team": "nlp"}, deadline_s=60.0, output_ttl_s=9.0, priority=1)
    assert (job.state, job.version, job.attempt, job.fence) == (State.QUEUED, 1, 0, 0)
    assert job.deadline_at == pytest.approx(job.created_at + 60, abs=0.5)
    assert job.labels == {"team": "nlp"}
    assert [event.data["state"] for event in yard.events(job.id)] == ["queued"]
    check_history(yard.events(job.id))
    assert [(row.queue, row.job_id) for row in unsent(yard.db)] == [("cpu", job.id)]


def test_a_refused_submission_leaves_nothing(yard: Yard) -> None:
    with pytest.raises(NotFoundError, match="art_unknown") as raised:
        send(yard.db, submission=Submission("m", {}, inputs={"model.safetensors": "art_unknown"}))
    assert raised.value.code == "artifact_not_found"
    assert raised.value.fix
    assert count(yard.db) == 0
    assert unsent(yard.db) == []
    assert not send(yard.db).replayed  # the key was not used up


def test_inputs_are_the_tenants_own_and_not_expired(yard: Yard) -> None:
    mine, theirs = yard.artifact(ttl_s=100), yard.artifact(tenant="rival")
    assert yard.submit(inputs={"model.safetensors": mine}).inputs == {"model.safetensors": mine}
    with pytest.raises(NotFoundError):
        yard.submit(inputs={"model.safetensors": theirs})
    yard.advance(101)
    with pytest.raises(NotFoundError):
        yard.submit(inputs={"model.safetensors": mine})


def test_the_quota_counts_unfinished_jobs(yard: Yard) -> None:
    first = send(yard.db, None, max_live=2).job
    send(yard.db, None, max_live=2)
    with pytest.raises(LimitError, match="2 jobs"):
        send(yard.db, None, max_live=2)
    send(yard.db, None, tenant="rival", max_live=2)
    cancel(yard.db, tenant=TENANT, job_id=first.id)
    send(yard.db, None, max_live=2)


def test_the_quota_holds_for_requests_at_once(db: Database) -> None:
    start = Barrier(24)

    def attempt(_: int) -> bool:
        start.wait()
        try:
            send(db, None, max_live=5)
        except LimitError:
            return False
        return True

    with ThreadPoolExecutor(24) as pool:
        accepted = sum(pool.map(attempt, range(24)))
    assert (accepted, count(db)) == (5, 5)


def test_the_same_key_and_request_give_the_same_job(yard: Yard) -> None:
    first, second = send(yard.db), send(yard.db)
    assert (first.replayed, second.replayed) == (False, True)
    assert first.job == second.job
    assert len(unsent(yard.db)) == 1


def test_the_same_key_with_another_request_is_refused(yard: Yard) -> None:
    send(yard.db)
    with pytest.raises(IdempotencyConflictError):
        send(yard.db, submission=Submission("project.unitary", {"seed": 2}))
    with pytest.raises(IdempotencyConflictError):
        send(yard.db, fingerprint="another")
    assert count(yard.db) == 1


def test_keys_belong_to_tenants(yard: Yard) -> None:
    assert not send(yard.db).replayed
    assert not send(yard.db, tenant="rival").replayed


def test_a_key_is_forgotten_after_its_time(yard: Yard) -> None:
    first = send(yard.db)
    yard.advance(KEY_KEPT_S - 60)
    assert send(yard.db).replayed
    yard.advance(120)
    second = send(yard.db, fingerprint="another by now")
    assert not second.replayed
    assert second.job.id != first.job.id
    yard.advance(KEY_KEPT_S + 60)
    sweep(yard.db)
    assert not send(yard.db).replayed


def test_a_replay_shows_the_job_as_it_is_now(yard: Yard) -> None:
    job = send(yard.db).job
    yard.claim(job_id=job.id)
    assert send(yard.db).job.state is State.RUNNING


def test_a_hundred_identical_requests_at_once_make_one_job(db: Database) -> None:
    with ThreadPoolExecutor(100) as pool:
        answers = list(pool.map(lambda _: send(db), range(100)))
    assert len({answer.job.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert count(db) == 1
    with db.read() as connection:
        assert connection.execute(select(func.count()).select_from(job_events)).scalar_one() == 1


def test_of_two_requests_at_once_with_one_key_one_conflicts(db: Database) -> None:
    def attempt(number: int) -> str:
        try:
            return send(db, fingerprint=f"request {number % 2}").job.id
        except IdempotencyConflictError:
            return "conflict"

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(attempt, range(20)))
    assert answers.count("conflict") == 10
    assert count(db) == 1
