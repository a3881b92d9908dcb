from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select
from yard import ERROR, TENANT, Yard, check_history, drain, held

from stiefel_jobs.states import Blame, State
from stiefel_jobs.store.actions import cancel, pause
from stiefel_jobs.store.finish import fail
from stiefel_jobs.store.outbox import SENT_KEPT_S, flush, forget_sent, mark_sent, unsent
from stiefel_jobs.store.sweep import LARGER_WORKER_S, RING_AGAIN_S, sweep
from stiefel_jobs.store.workers import largest_share, report_worker
from stiefel_jobs.tables import outbox


def rows(yard: Yard) -> int:
    with yard.db.read() as connection:
        return connection.execute(select(func.count()).select_from(outbox)).scalar_one()


def took(_queue: str, _job_id: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("state", "then"),
    [
        (State.RUNNING, State.QUEUED),
        (State.FINALIZING, State.QUEUED),
        (State.PAUSING, State.PAUSED),
        (State.CANCELLING, State.CANCELLED),
    ],
)
def test_a_lost_lease_is_settled_as_the_owner_wished(yard: Yard, state: State, then: State) -> None:
    taken = yard.in_state(state)
    assert sweep(yard.db) == sweep(yard.db)
    assert yard.get(taken.job_id).state is state
    yard.advance(4000)
    report = sweep(yard.db)
    named = {
        State.QUEUED: report.requeued,
        State.PAUSED: report.paused,
        State.CANCELLED: report.cancelled,
    }
    assert named[then] == (taken.job_id,)
    assert yard.get(taken.job_id).state is then
    assert (report.ring == (("cpu", taken.job_id),)) == (then is State.QUEUED)
    check_history(yard.events(taken.job_id))


def test_the_last_lost_attempt_fails_the_job(yard: Yard) -> None:
    job = yard.submit(max_attempts=2)
    for expected in ("requeued", "failed"):
        yard.claim()
        yard.advance(31)
        assert getattr(sweep(yard.db), expected) == (job.id,)
    failed = yard.get(job.id)
    assert (failed.state, failed.blame) == (State.FAILED, Blame.SYSTEM)


def test_a_queued_job_past_its_deadline_expires(yard: Yard) -> None:
    late, early = yard.submit(deadline_s=10.0), yard.submit(deadline_s=60.0)
    yard.advance(11)
    report = sweep(yard.db)
    assert report.expired == (late.id,)
    assert yard.get(late.id).finished_at is not None
    assert yard.get(early.id).state is State.QUEUED


def test_a_paused_job_past_its_deadline_expires(yard: Yard) -> None:
    waiting, lost = yard.submit(deadline_s=60.0), yard.started(deadline_s=60.0)
    for job_id in (waiting.id, lost.job_id):
        pause(yard.db, tenant=TENANT, job_id=job_id)
    yard.advance(31)  # the worker of the second is gone before it has paused
    assert (sweep(yard.db).paused, sweep(yard.db).expired) == ((lost.job_id,), ())
    assert yard.get(waiting.id).state is State.PAUSED
    yard.advance(30)
    assert sorted(sweep(yard.db).expired) == sorted((waiting.id, lost.job_id))
    for job_id in (waiting.id, lost.job_id):
        expired = yard.get(job_id)
        assert (expired.state, expired.reason) == (State.EXPIRED, "deadline passed")
        assert expired.finished_at is not None
        check_history(yard.events(job_id))


def test_a_paused_job_without_a_deadline_stays(yard: Yard) -> None:
    job = yard.submit()
    pause(yard.db, tenant=TENANT, job_id=job.id)
    yard.advance(1e6)
    assert sweep(yard.db).expired == ()
    assert yard.get(job.id).state is State.PAUSED


def test_a_running_job_past_its_deadline_is_its_workers_business(yard: Yard) -> None:
    taken = yard.started(deadline_s=10.0)
    yard.advance(11)
    assert sweep(yard.db).expired == ()
    yard.advance(20)  # now the worker is gone as well
    report = sweep(yard.db)
    assert (report.requeued, report.expired, report.ring) == ((taken.job_id,),) * 2 + ((),)


def test_sweepers_at_once_settle_each_job_once(yard: Yard) -> None:
    taken = [yard.started() for _ in range(10)]
    flush(yard.db, took)
    yard.advance(31)
    with ThreadPoolExecutor(4) as pool:
        reports = list(pool.map(sweep, [yard.db] * 4))
    requeued = [job_id for report in reports for job_id in report.requeued]
    assert sorted(requeued) == sorted(one.job_id for one in taken)
    rung = [pair for report in reports for pair in report.ring]
    assert len(rung) == len(set(rung)) == 10
    for one in taken:
        assert yard.get(one.job_id).failures == 1
        check_history(yard.events(one.job_id))


def test_a_forgotten_ring_is_rung_by_the_sweeper_once(yard: Yard) -> None:
    job = yard.submit()
    assert sweep(yard.db).ring == ()  # its sender may still be at it
    yard.advance(RING_AGAIN_S + 1)
    assert sweep(yard.db).ring == (("cpu", job.id),)
    assert sweep(yard.db).ring == ()


def test_nobody_rings_for_a_job_that_no_longer_waits(yard: Yard) -> None:
    job = yard.submit()
    cancel(yard.db, tenant=TENANT, job_id=job.id)
    yard.advance(RING_AGAIN_S + 1)
    assert sweep(yard.db).ring == ()
    assert unsent(yard.db) == []


def test_a_ring_waits_for_the_pause_between_attempts(yard: Yard) -> None:
    first = yard.submit()
    flush(yard.db, took)
    drain(yard.db, yard.claim())
    assert len(unsent(yard.db)) == 1
    flush(yard.db, took)
    taken = yard.claim()
    fail(yard.db, **held(taken), reason="x", blame=Blame.SYSTEM, error=ERROR, retry=True)
    assert unsent(yard.db) == []
    yard.advance(2)
    assert [row.job_id for row in unsent(yard.db)] == [first.id]


def test_flushing_confirms_only_what_the_broker_took(yard: Yard) -> None:
    first, second = yard.submit(), yard.submit(queue="cuda")
    assert flush(yard.db, lambda queue, _: queue == "cuda") == 1
    assert [(row.queue, row.job_id) for row in unsent(yard.db)] == [("cpu", first.id)]
    assert flush(yard.db, took, job_id=second.id) == 0
    assert flush(yard.db, took, older_than_s=60) == 0
    assert flush(yard.db, took) == 1
    assert unsent(yard.db) == []
    mark_sent(yard.db, [])


def test_sent_messages_are_forgotten_in_time(yard: Yard) -> None:
    yard.submit()
    yard.submit()
    flush(yard.db, took)
    forget_sent(yard.db)
    assert rows(yard) == 2
    yard.advance(SENT_KEPT_S + 60)
    sweep(yard.db)
    assert rows(yard) == 0


def report(yard: Yard, name: str, memory: int, queue: str = "cpu") -> None:
    field = "cuda_memory_bytes" if queue == "cuda" else "memory_bytes"
    report_worker(
        yard.db, worker=name, host="h", queues=[queue], version="0", devices={field: memory}
    )


def test_a_job_too_large_for_every_worker_fails_once_it_has_waited(yard: Yard) -> None:
    large, fits = yard.submit(peak_memory_bytes=3 * 2**30), yard.submit(peak_memory_bytes=2**30)
    other = yard.submit(peak_memory_bytes=3 * 2**30, queue="cuda")
    assert largest_share(yard.db, "cpu") is None
    yard.advance(LARGER_WORKER_S + 1)
    assert sweep(yard.db).failed == (), "no worker is known that it would not fit"
    report(yard, "one", 2**30)
    report(yard, "two", 2 * 2**30)
    report(yard, "gpu", 4 * 2**30, "cuda")
    assert largest_share(yard.db, "cpu") == 2 * 2**30
    assert sweep(yard.db).failed == (large.id,)
    failed = yard.get(large.id)
    assert (failed.state, failed.blame, failed.reason) == (
        State.FAILED,
        Blame.RESOURCE,
        "too_large",
    )
    assert failed.error is not None
    assert "3.0 GiB" in failed.error["detail"]
    assert "2.0 GiB" in failed.error["detail"]
    assert failed.error["fix"]
    check_history(yard.events(large.id))
    for job in (fits, other):
        assert yard.get(job.id).state is State.QUEUED


def test_a_large_job_is_given_time_for_a_larger_worker(yard: Yard) -> None:
    large = yard.submit(peak_memory_bytes=3 * 2**30)
    report(yard, "one", 2**30)
    assert sweep(yard.db).failed == ()
    assert yard.get(large.id).state is State.QUEUED
