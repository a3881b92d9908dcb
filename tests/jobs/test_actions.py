from __future__ import annotations

import pytest
from yard import ERROR, TENANT, Yard, check_history, held

from stiefel_jobs.errors import ActionNotAllowedError, NotFoundError
from stiefel_jobs.states import Blame, State, allowed_actions
from stiefel_jobs.store.actions import cancel, pause, resume, retry
from stiefel_jobs.store.finish import fail
from stiefel_jobs.store.outbox import unsent

VERBS = {"cancel": cancel, "pause": pause, "resume": resume, "retry": retry}

#: Where each verb takes a job, and where it finds its wish fulfilled already.
OUTCOMES: dict[tuple[str, State], State] = {
    ("cancel", State.QUEUED): State.CANCELLED,
    ("cancel", State.PAUSED): State.CANCELLED,
    ("cancel", State.RUNNING): State.CANCELLING,
    ("cancel", State.PAUSING): State.CANCELLING,
    ("cancel", State.CANCELLING): State.CANCELLING,
    ("cancel", State.CANCELLED): State.CANCELLED,
    ("pause", State.QUEUED): State.PAUSED,
    ("pause", State.RUNNING): State.PAUSING,
    ("pause", State.PAUSING): State.PAUSING,
    ("pause", State.PAUSED): State.PAUSED,
    ("resume", State.PAUSED): State.QUEUED,
    ("resume", State.QUEUED): State.QUEUED,
    ("resume", State.RUNNING): State.RUNNING,
    ("retry", State.FAILED): State.QUEUED,
    ("retry", State.CANCELLED): State.QUEUED,
    ("retry", State.QUEUED): State.QUEUED,
    ("retry", State.RUNNING): State.RUNNING,
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("state", State)
def test_every_verb_in_every_state(yard: Yard, verb: str, state: State) -> None:
    job_id = yard.in_state(state).job_id
    before = yard.get(job_id)
    target = OUTCOMES.get((verb, state))
    if target is None:
        with pytest.raises(ActionNotAllowedError, match=f"is {state}") as raised:
            VERBS[verb](yard.db, tenant=TENANT, job_id=job_id)
        assert raised.value.allowed == allowed_actions(state)
        assert yard.get(job_id) == before
        return
    job = VERBS[verb](yard.db, tenant=TENANT, job_id=job_id)
    assert job.state is target
    assert (job == before) == (target is state)
    assert (target is not state) == (verb in allowed_actions(state))
    assert VERBS[verb](yard.db, tenant=TENANT, job_id=job_id) == job  # twice is as good as once
    check_history(yard.events(job_id))


@pytest.mark.parametrize("verb", VERBS)
def test_another_tenants_job_does_not_exist(yard: Yard, verb: str) -> None:
    job = yard.submit()
    with pytest.raises(NotFoundError) as foreign:
        VERBS[verb](yard.db, tenant="rival", job_id=job.id)
    with pytest.raises(NotFoundError) as unknown:
        VERBS[verb](yard.db, tenant="rival", job_id="job_0")
    assert foreign.value.detail.replace(job.id, "job_0") == unknown.value.detail
    assert yard.get(job.id) == job


def test_a_retry_gets_a_new_budget_of_attempts_and_time(yard: Yard) -> None:
    job = yard.submit(max_attempts=1, deadline_s=100.0)
    taken = yard.claim()
    fail(yard.db, **held(taken), reason="disk", blame=Blame.SYSTEM, error=ERROR, retry=True)
    yard.advance(1000)
    again = retry(yard.db, tenant=TENANT, job_id=job.id)
    assert (again.state, again.failures, again.attempt) == (State.QUEUED, 0, 1)
    assert (again.error, again.blame, again.reason, again.finished_at) == (None,) * 4
    second = yard.claim()
    assert (second.attempt, second.fence) == (2, 2)
    assert second.seconds_left == pytest.approx(100, abs=1)


@pytest.mark.parametrize(("verb", "state"), [("resume", State.PAUSED), ("retry", State.CANCELLED)])
def test_whoever_queues_again_rings_again(yard: Yard, verb: str, state: State) -> None:
    taken = yard.in_state(state)
    VERBS[verb](yard.db, tenant=TENANT, job_id=taken.job_id)
    assert len(unsent(yard.db, job_id=taken.job_id)) == 2
