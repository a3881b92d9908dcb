from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select
from yard import ERROR, TENANT, Yard, check_history, drain, held, output

from stiefel_jobs.errors import ActionNotAllowedError, StaleFenceError
from stiefel_jobs.records import Segment, StateFile
from stiefel_jobs.states import LEASED, Blame, State
from stiefel_jobs.store.actions import cancel, pause, resume
from stiefel_jobs.store.finish import begin_finalizing, fail, finish, release
from stiefel_jobs.store.outbox import unsent
from stiefel_jobs.store.progress import checkpoint
from stiefel_jobs.store.queries import attempts, checkpoints
from stiefel_jobs.tables import artifacts, checkpoint_segments

FILES = [StateFile("body.bin", 3, [Segment("ef" * 32, 3)])]

FENCED: dict[str, Callable[..., object]] = {
    "begin_finalizing": begin_finalizing,
    "finish": lambda db, **k: finish(db, **k, artifacts=[output()], result={}),
    "fail": lambda db, **k: fail(
        db, **k, reason="late", blame=Blame.SYSTEM, error=ERROR, retry=True
    ),
    "release": lambda db, **k: release(db, **k, to=State.QUEUED, reason="late"),
}


def count(yard: Yard, table: Any) -> int:
    with yard.db.read() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def failing(yard: Yard, blame: Blame, *, retry: bool = True, reason: str = "broken") -> State:
    taken = yard.claim()
    return fail(yard.db, **held(taken), reason=reason, blame=blame, error=ERROR, retry=retry)


def test_results_and_success_are_one(yard: Yard) -> None:
    taken = yard.started(output_ttl_s=60.0)
    checkpoint(yard.db, **held(taken), step=1, files=FILES)
    assert begin_finalizing(yard.db, **held(taken)) is State.FINALIZING
    made = [output(), output("report.json", "12" * 32)]
    job = finish(yard.db, **held(taken), artifacts=made, result={"metrics": {"defect": 1e-7}})
    assert job.state is State.SUCCEEDED
    assert job.finished_at is not None
    assert (job.worker, job.lease_until) == (None, None)
    assert job.result is not None
    assert job.result["metrics"] == {"defect": 1e-7}
    assert set(job.result["files"]) == {"model.safetensors", "report.json"}
    with yard.db.read() as connection:
        rows = connection.execute(select(artifacts)).all()
    for row in rows:
        assert job.result["files"][row.name]["artifact"] == row.id
        assert (row.tenant, row.job_id) == (TENANT, job.id)
        assert row.expires_at == pytest.approx(row.created_at + 60, abs=0.5)
    assert attempts(yard.db, tenant=TENANT, job_id=job.id)[0].reason == "succeeded"
    check_history(yard.events(job.id))


def test_success_lets_go_of_the_checkpoints(yard: Yard) -> None:
    taken = yard.started()
    checkpoint(yard.db, **held(taken), step=1, files=FILES)
    begin_finalizing(yard.db, **held(taken))
    finish(yard.db, **held(taken), artifacts=[], result={})
    assert checkpoints(yard.db, tenant=TENANT, job_id=taken.job_id) == []
    assert count(yard, checkpoint_segments) == 0


def test_the_same_output_twice_is_one_blob_and_two_artifacts(yard: Yard) -> None:
    for _ in range(2):
        yard.in_state(State.SUCCEEDED)
    assert count(yard, artifacts) == 2


def test_finalizing_twice_is_once(yard: Yard) -> None:
    taken = yard.in_state(State.FINALIZING)
    assert begin_finalizing(yard.db, **held(taken)) is State.FINALIZING
    check_history(yard.events(taken.job_id))


@pytest.mark.parametrize("state", [State.PAUSING, State.CANCELLING])
def test_a_wish_that_came_first_prevails_over_finalizing(yard: Yard, state: State) -> None:
    taken = yard.in_state(state)
    assert begin_finalizing(yard.db, **held(taken)) is state


@pytest.mark.parametrize("state", [State.RUNNING, State.PAUSING, State.CANCELLING])
def test_only_a_finalizing_job_succeeds(yard: Yard, state: State) -> None:
    taken = yard.in_state(state)
    with pytest.raises(StaleFenceError, match=f"is {state}"):
        FENCED["finish"](yard.db, **held(taken))
    assert yard.get(taken.job_id).state is state
    assert count(yard, artifacts) == 0


@pytest.mark.parametrize("verb", FENCED)
@pytest.mark.parametrize("state", [state for state in State if state not in LEASED])
def test_whoever_holds_no_lease_writes_nothing(yard: Yard, verb: str, state: State) -> None:
    taken = yard.in_state(state)
    before, outputs = yard.get(taken.job_id), count(yard, artifacts)
    with pytest.raises(StaleFenceError):
        FENCED[verb](yard.db, **held(taken))
    assert yard.get(taken.job_id) == before
    assert count(yard, artifacts) == outputs


@pytest.mark.parametrize("verb", FENCED)
@pytest.mark.parametrize("state", [State.RUNNING, State.FINALIZING])
def test_a_zombie_writes_nothing(yard: Yard, verb: str, state: State) -> None:
    zombie = yard.in_state(state)
    yard.advance(4000)
    heir = yard.claim(worker="w2")
    begin_finalizing(yard.db, **held(heir))
    before = yard.get(zombie.job_id)
    with pytest.raises(StaleFenceError):
        FENCED[verb](yard.db, **held(zombie))
    with pytest.raises(StaleFenceError):
        FENCED[verb](yard.db, job_id="job_unknown", fence=1)
    assert yard.get(zombie.job_id) == before
    assert count(yard, artifacts) == 0


def test_of_many_who_commit_at_once_one_does(yard: Yard) -> None:
    taken = yard.in_state(State.FINALIZING)

    def commit(_: int) -> bool:
        try:
            finish(yard.db, **held(taken), artifacts=[output()], result={})
        except StaleFenceError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(commit, range(16))) == 1
    assert count(yard, artifacts) == 1
    check_history(yard.events(taken.job_id))


def test_the_callers_mistake_is_final(yard: Yard) -> None:
    job = yard.submit()
    assert failing(yard, Blame.USER, retry=True, reason="nan") is State.FAILED
    failed = yard.get(job.id)
    assert (failed.blame, failed.reason, failed.error) == (Blame.USER, "nan", ERROR)
    assert failed.finished_at is not None


def test_a_failure_of_the_service_is_tried_again_with_growing_pauses(yard: Yard) -> None:
    job = yard.submit(max_attempts=3)
    waits = []
    for _ in range(2):
        assert failing(yard, Blame.SYSTEM) is State.QUEUED
        queued = yard.get(job.id)
        waits.append(yard.events(job.id)[-1].data["retry_in_s"])
        assert queued.error is None
        yard.advance(10)
    assert waits == [1.0, 2.0]
    assert failing(yard, Blame.SYSTEM) is State.FAILED
    assert yard.get(job.id).blame is Blame.SYSTEM
    assert [a.error for a in attempts(yard.db, tenant=TENANT, job_id=job.id)] == [ERROR] * 3
    check_history(yard.events(job.id))


def test_without_retry_the_first_failure_is_the_last(yard: Yard) -> None:
    yard.submit()
    assert failing(yard, Blame.TIMEOUT, retry=False) is State.FAILED


def test_two_deaths_for_want_of_memory_are_enough(yard: Yard) -> None:
    job = yard.submit(max_attempts=10)
    assert failing(yard, Blame.RESOURCE, reason="killed") is State.QUEUED
    yard.advance(10)
    assert failing(yard, Blame.SYSTEM) is State.QUEUED  # another cause does not count
    yard.advance(10)
    taken = yard.claim()
    error = {**ERROR, "peak_bytes": 2**34}
    state = fail(
        yard.db, **held(taken), reason="killed", blame=Blame.RESOURCE, error=error, retry=True
    )
    assert state is State.FAILED
    failed = yard.get(job.id)
    assert failed.blame is Blame.RESOURCE
    assert failed.error is not None
    assert failed.error["peak_bytes"] == 2**34


def test_a_failure_after_a_cancel_is_a_cancel(yard: Yard) -> None:
    taken = yard.in_state(State.CANCELLING)
    assert FENCED["fail"](yard.db, **held(taken)) is State.CANCELLED


def test_a_failure_after_a_pause_is_counted_and_pauses(yard: Yard) -> None:
    taken = yard.in_state(State.PAUSING, max_attempts=2)
    assert FENCED["fail"](yard.db, **held(taken)) is State.PAUSED
    assert yard.get(taken.job_id).failures == 1
    resume(yard.db, tenant=TENANT, job_id=taken.job_id)
    again = yard.claim()
    pause(yard.db, tenant=TENANT, job_id=again.job_id)
    assert FENCED["fail"](yard.db, **held(again)) is State.FAILED


def test_a_drain_costs_no_attempt(yard: Yard) -> None:
    job = yard.submit(max_attempts=1)
    for _ in range(3):
        assert drain(yard.db, yard.claim()) is State.QUEUED
    assert yard.get(job.id).failures == 0
    assert [row.job_id for row in unsent(yard.db)] == [job.id] * 4
    assert {a.reason for a in attempts(yard.db, tenant=TENANT, job_id=job.id)} == {"drained"}


@pytest.mark.parametrize(
    ("state", "to", "then"),
    [
        (State.RUNNING, State.QUEUED, State.QUEUED),
        (State.FINALIZING, State.QUEUED, State.QUEUED),
        (State.PAUSING, State.PAUSED, State.PAUSED),
        (State.PAUSING, State.QUEUED, State.PAUSED),
        (State.CANCELLING, State.CANCELLED, State.CANCELLED),
        (State.CANCELLING, State.PAUSED, State.CANCELLED),
        (State.CANCELLING, State.QUEUED, State.CANCELLED),
    ],
)
def test_the_owners_wish_prevails_over_the_workers(
    yard: Yard, state: State, to: State, then: State
) -> None:
    taken = yard.in_state(state)
    assert release(yard.db, **held(taken), to=to, reason="asked") is then
    job = yard.get(taken.job_id)
    assert (job.state, job.worker, job.lease_until) == (then, None, None)
    check_history(yard.events(taken.job_id))


@pytest.mark.parametrize(
    ("state", "to"),
    [
        (State.RUNNING, State.PAUSED),
        (State.RUNNING, State.CANCELLED),
        (State.FINALIZING, State.PAUSED),
        (State.PAUSING, State.CANCELLED),
        (State.RUNNING, State.SUCCEEDED),
    ],
)
def test_a_worker_does_not_stop_what_nobody_asked_to_stop(
    yard: Yard, state: State, to: State
) -> None:
    taken = yard.in_state(state)
    with pytest.raises(ActionNotAllowedError):
        release(yard.db, **held(taken), to=to, reason="whim")
    assert yard.get(taken.job_id).state is state


def test_a_paused_job_resumes_from_its_checkpoint(yard: Yard) -> None:
    taken = yard.started()
    checkpoint(yard.db, **held(taken), step=4, files=FILES)
    pause(yard.db, tenant=TENANT, job_id=taken.job_id)
    release(yard.db, **held(taken), to=State.PAUSED, reason="paused")
    assert yard.no_claim()
    resume(yard.db, tenant=TENANT, job_id=taken.job_id)
    again = yard.claim()
    assert again.checkpoint is not None
    assert again.checkpoint.step == 4


def test_a_cancelled_job_keeps_its_checkpoint_for_a_retry(yard: Yard) -> None:
    taken = yard.started()
    checkpoint(yard.db, **held(taken), step=4, files=FILES)
    cancel(yard.db, tenant=TENANT, job_id=taken.job_id)
    release(yard.db, **held(taken), to=State.CANCELLED, reason="cancelled")
    assert len(checkpoints(yard.db, tenant=TENANT, job_id=taken.job_id)) == 1
