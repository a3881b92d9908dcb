from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import delete
from yard import ERROR, TENANT, Yard, check_history, held

from stiefel_jobs.database import Database
from stiefel_jobs.errors import StaleFenceError
from stiefel_jobs.records import Segment, StateFile
from stiefel_jobs.states import PRIORITIES, Blame, State
from stiefel_jobs.store.actions import cancel, pause
from stiefel_jobs.store.claim import AGEING_S, claim, renew, wanted
from stiefel_jobs.store.finish import begin_finalizing, fail
from stiefel_jobs.store.progress import checkpoint
from stiefel_jobs.store.queries import attempts
from stiefel_jobs.tables import artifacts


def test_a_claim_carries_all_that_a_worker_needs(yard: Yard) -> None:
    artifact = yard.artifact()
    job = yard.submit(inputs={"model.safetensors": artifact}, deadline_s=100.0, output_ttl_s=5.0)
    taken = yard.claim()
    assert (taken.job_id, taken.tenant, taken.method) == (job.id, TENANT, "project.unitary")
    assert taken.spec == {"seed": 1}
    assert taken.inputs["model.safetensors"].id == artifact
    assert (taken.fence, taken.attempt, taken.checkpoint) == (1, 1, None)
    assert taken.seconds_left == pytest.approx(100, abs=1)
    assert taken.output_ttl_s == 5.0
    assert yard.get(job.id).state is State.RUNNING


def test_a_job_is_claimed_once(yard: Yard) -> None:
    yard.started()
    assert yard.no_claim()


def test_only_the_queues_asked_for(yard: Yard) -> None:
    job = yard.submit(queue="cuda")
    assert yard.no_claim()
    taken = claim(yard.db, worker="w", queues=["cpu", "cuda"])
    assert taken is not None
    assert taken.job_id == job.id


def test_only_what_fits_the_memory_of_its_queue(yard: Yard) -> None:
    large = yard.submit(peak_memory_bytes=101)
    elsewhere = yard.submit(peak_memory_bytes=150, queue="cuda")
    fits, unknown = yard.submit(peak_memory_bytes=100), yard.submit()
    limits = {"cpu": 100, "cuda": 200}
    order = []
    while taken := claim(yard.db, worker="w", queues=["cpu", "cuda"], memory_bytes=limits):
        order.append(taken.job_id)
    assert order == [elsewhere.id, fits.id, unknown.id]
    assert yard.no_claim(memory_bytes={"cpu": 100})
    assert yard.claim().job_id == large.id


def test_a_named_job_is_claimed_before_its_turn(yard: Yard) -> None:
    _, second = yard.submit(), yard.submit()
    assert yard.claim(job_id=second.id).job_id == second.id
    assert yard.no_claim(job_id=second.id)


def test_priority_first_then_age(yard: Yard) -> None:
    low, first, second, high = (
        yard.submit(priority=PRIORITIES[name]).id for name in ("low", "normal", "normal", "high")
    )
    assert [yard.claim().job_id for _ in range(4)] == [high, first, second, low]


def test_waiting_lifts_a_job_so_that_none_starves(yard: Yard) -> None:
    low = yard.submit(priority=PRIORITIES["low"]).id
    yard.advance(2 * AGEING_S)
    high = yard.submit(priority=PRIORITIES["high"]).id
    assert [yard.claim().job_id for _ in range(2)] == [low, high]


def test_the_tenant_with_the_fewest_running_jobs_comes_next(yard: Yard) -> None:
    greedy = [yard.submit(tenant="greedy").id for _ in range(4)]
    modest = [yard.submit(tenant="modest").id for _ in range(2)]
    order = [yard.claim().job_id for _ in range(6)]
    assert order == [greedy[0], modest[0], greedy[1], modest[1], greedy[2], greedy[3]]


def test_a_job_past_its_deadline_is_not_started(yard: Yard) -> None:
    yard.submit(deadline_s=10.0)
    yard.advance(11)
    assert yard.no_claim()


def test_a_failed_attempt_waits_before_the_next(yard: Yard) -> None:
    taken = yard.started()
    fail(yard.db, **held(taken), reason="disk", blame=Blame.SYSTEM, error=ERROR, retry=True)
    assert yard.no_claim()
    yard.advance(1.5)
    assert yard.claim().fence == 2


def test_a_lost_job_is_taken_over_and_its_attempt_accounted_for(yard: Yard) -> None:
    taken = yard.started()
    assert yard.no_claim()
    yard.advance(31)
    again = yard.claim(worker="w2")
    assert (again.job_id, again.fence, again.attempt) == (taken.job_id, 2, 2)
    first, second = attempts(yard.db, tenant=TENANT, job_id=taken.job_id)
    assert (first.worker, first.reason, first.blame) == ("w1", "worker_lost", Blame.SYSTEM)
    assert first.ended_at is not None
    assert (second.worker, second.reason, second.ended_at) == ("w2", None, None)
    assert yard.get(taken.job_id).failures == 1
    check_history(yard.events(taken.job_id))


def test_a_job_lost_while_finalizing_is_taken_over_too(yard: Yard) -> None:
    taken = yard.in_state(State.FINALIZING)
    yard.advance(4000)
    assert yard.claim().fence == taken.fence + 1


@pytest.mark.parametrize("state", [State.PAUSING, State.CANCELLING])
def test_a_lost_job_that_should_stop_is_not_taken_over(yard: Yard, state: State) -> None:
    yard.in_state(state)
    yard.advance(4000)
    assert yard.no_claim()


def test_the_last_lost_attempt_fails_the_job_and_the_next_job_is_taken(yard: Yard) -> None:
    hopeless = yard.started(max_attempts=1)
    other = yard.submit()
    yard.advance(31)
    assert yard.claim().job_id == other.id
    job = yard.get(hopeless.job_id)
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.SYSTEM, "worker_lost")
    assert job.error is not None
    assert job.error["fix"]


def test_a_claim_resumes_from_the_last_checkpoint(yard: Yard) -> None:
    taken = yard.started()
    for step in (1, 2):
        files = [StateFile("a.bin", 3 * step, [Segment(f"{n}" * 64, 3) for n in range(step)])]
        checkpoint(yard.db, **held(taken), step=step, files=files)
    yard.advance(31)
    again = yard.claim()
    assert again.checkpoint is not None
    assert again.checkpoint.step == 2
    assert again.checkpoint.files == (
        StateFile("a.bin", 6, (Segment("0" * 64, 3), Segment("1" * 64, 3))),
    )
    assert [a.resumed_from for a in attempts(yard.db, tenant=TENANT, job_id=taken.job_id)] == [
        None,
        2,
    ]


def test_a_deleted_input_fails_the_job_and_names_the_artifact(yard: Yard) -> None:
    artifact = yard.artifact()
    job = yard.submit(inputs={"model.safetensors": artifact})
    other = yard.submit()
    with yard.db.write() as connection:
        connection.execute(delete(artifacts).where(artifacts.c.id == artifact))
    assert yard.claim().job_id == other.id
    failed = yard.get(job.id)
    assert (failed.state, failed.blame, failed.reason) == (
        State.FAILED,
        Blame.USER,
        "input_missing",
    )
    assert failed.error is not None
    assert artifact in failed.error["detail"]
    check_history(yard.events(job.id))


def test_renewing_keeps_the_lease(yard: Yard) -> None:
    taken = yard.started()
    for _ in range(3):
        yard.advance(20)
        assert renew(yard.db, **held(taken)) is State.RUNNING
    assert yard.no_claim()


def test_a_late_heartbeat_revives_a_lease_nobody_else_took(yard: Yard) -> None:
    taken = yard.started()
    yard.advance(100)
    assert renew(yard.db, **held(taken)) is State.RUNNING
    assert yard.no_claim()


def test_a_heartbeat_brings_back_what_is_wanted(yard: Yard) -> None:
    taken = yard.started()
    pause(yard.db, tenant=TENANT, job_id=taken.job_id)
    assert renew(yard.db, **held(taken)) is State.PAUSING
    assert wanted(yard.db, **held(taken)) is State.PAUSING
    cancel(yard.db, tenant=TENANT, job_id=taken.job_id)
    assert renew(yard.db, **held(taken)) is State.CANCELLING
    assert wanted(yard.db, **held(taken)) is State.CANCELLING


def test_a_heartbeat_is_no_change_to_watch_for(yard: Yard) -> None:
    taken = yard.started()
    before = yard.get(taken.job_id)
    renew(yard.db, **held(taken))
    after = yard.get(taken.job_id)
    assert (before.version, before.last_seq) == (after.version, after.last_seq)


def test_finalizing_shows_in_the_heartbeat(yard: Yard) -> None:
    taken = yard.started()
    begin_finalizing(yard.db, **held(taken))
    assert renew(yard.db, **held(taken)) is State.FINALIZING


@pytest.mark.parametrize("verb", [renew, wanted])
def test_a_heartbeat_of_a_lost_job_is_refused(yard: Yard, verb: object) -> None:
    taken = yard.started()
    yard.advance(31)
    yard.claim(worker="w2")
    with pytest.raises(StaleFenceError, match=taken.job_id):
        verb(yard.db, **held(taken))  # type: ignore[operator]


def test_many_workers_share_the_jobs_without_a_duplicate(db: Database) -> None:
    yard = Yard(db)
    submitted = {yard.submit(tenant=f"t{n % 3}").id for n in range(30)}

    def work(number: int) -> list[str]:
        mine = []
        while (taken := claim(db, worker=f"w{number}", queues=["cpu"])) is not None:
            mine.append(taken.job_id)
        return mine

    with ThreadPoolExecutor(8) as pool:
        taken = [job_id for mine in pool.map(work, range(8)) for job_id in mine]
    # A worker that finds only locked rows leaves early; the poll covers that: count what is left.
    while (rest := claim(db, worker="last", queues=["cpu"])) is not None:
        taken.append(rest.job_id)
    assert len(taken) == 30
    assert set(taken) == submitted
