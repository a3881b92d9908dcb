from __future__ import annotations

import pytest
from yard import TENANT, Yard

from stiefel_jobs.errors import NotFoundError
from stiefel_jobs.states import PRIORITIES, State
from stiefel_jobs.store import queries
from stiefel_jobs.store.actions import cancel, pause
from stiefel_jobs.store.workers import forget_worker, list_workers, report_worker

READERS = {
    "get_job": queries.get_job,
    "events": queries.events,
    "metrics": queries.metrics,
    "attempts": queries.attempts,
    "checkpoints": queries.checkpoints,
    "position": queries.position,
}


def listed(yard: Yard, **options: object) -> list[str]:
    page = queries.list_jobs(yard.db, tenant=TENANT, **options)  # type: ignore[arg-type]
    return [job.id for job in page.items]


@pytest.mark.parametrize("name", READERS)
def test_a_foreign_job_reads_like_an_unknown_one(yard: Yard, name: str) -> None:
    job = yard.submit()
    READERS[name](yard.db, tenant=TENANT, job_id=job.id)
    with pytest.raises(NotFoundError) as foreign:
        READERS[name](yard.db, tenant="rival", job_id=job.id)
    with pytest.raises(NotFoundError) as unknown:
        READERS[name](yard.db, tenant="rival", job_id="job_0")
    assert foreign.value.detail.replace(job.id, "job_0") == unknown.value.detail


def test_jobs_are_listed_newest_first_in_pages(yard: Yard) -> None:
    ids = [yard.submit().id for _ in range(5)]
    yard.submit(tenant="rival")
    read: list[str] = []
    after = None
    while True:
        page = queries.list_jobs(yard.db, tenant=TENANT, after=after, limit=2)
        read += [job.id for job in page.items]
        after = page.next
        if after is None:
            break
    assert read == ids[::-1]


def test_jobs_are_found_by_state_and_label(yard: Yard) -> None:
    nlp = yard.submit(labels={"team": "nlp", "run": 'a"b'}).id
    both = yard.submit(labels={"team": "nlp", "run": "2"}).id
    other = yard.submit(labels={"team": "vision"}).id
    cancel(yard.db, tenant=TENANT, job_id=both)
    assert listed(yard, labels={"team": "nlp"}) == [both, nlp]
    assert listed(yard, labels={"team": "nlp", "run": 'a"b'}) == [nlp]
    assert listed(yard, states=[State.CANCELLED]) == [both]
    assert listed(yard, states=[State.QUEUED]) == [other, nlp]
    assert listed(yard, states=[State.QUEUED], labels={"team": "nlp"}) == [nlp]
    assert listed(yard, labels={"team": "none"}) == []


def test_events_continue_after_a_cursor(yard: Yard) -> None:
    taken = yard.in_state(State.SUCCEEDED)
    every = yard.events(taken.job_id)
    first = queries.events(yard.db, tenant=TENANT, job_id=taken.job_id, limit=2)
    rest = queries.events(yard.db, tenant=TENANT, job_id=taken.job_id, after_seq=first[-1].seq)
    assert first + rest == every


def test_versions_tell_a_watcher_what_changed(yard: Yard) -> None:
    first, second = yard.submit(), yard.submit()
    before = queries.versions(yard.db, [first.id, second.id, "job_0"])
    pause(yard.db, tenant=TENANT, job_id=first.id)
    after = queries.versions(yard.db, [first.id, second.id])
    assert set(before) == {first.id, second.id}
    assert after[first.id] == before[first.id] + 1
    assert after[second.id] == before[second.id]
    assert queries.versions(yard.db, []) == {}


def test_a_queued_job_knows_how_many_stand_before_it(yard: Yard) -> None:
    first, second = yard.submit(), yard.submit()
    high = yard.submit(priority=PRIORITIES["high"])
    yard.submit(queue="cuda")
    places = [
        queries.position(yard.db, tenant=TENANT, job_id=job.id) for job in (high, first, second)
    ]
    assert places == [0, 1, 2]
    yard.claim(job_id=first.id)
    assert queries.position(yard.db, tenant=TENANT, job_id=first.id) is None


def test_depths_show_the_load_of_every_queue(yard: Yard) -> None:
    yard.submit()
    yard.submit(queue="cuda")
    yard.in_state(State.CANCELLED)
    yard.advance(60)
    yard.submit(queue="cuda")
    found = {(depth.queue, depth.state): depth for depth in queries.depths(yard.db)}
    assert set(found) == {("cpu", State.QUEUED), ("cuda", State.QUEUED)}
    assert found["cuda", State.QUEUED].count == 2
    assert found["cuda", State.QUEUED].oldest_s == pytest.approx(60, abs=2)


def test_workers_come_and_go(yard: Yard) -> None:
    for draining in (False, True):
        report_worker(
            yard.db, worker="w1", host="h", queues=["cpu"], version="1", draining=draining
        )
    report_worker(yard.db, worker="w2", host="h", queues=["cuda"], version="1", devices={"n": 1})
    first, second = list_workers(yard.db)
    assert (first.id, first.draining, first.queues) == ("w1", True, ["cpu"])
    assert (second.id, second.devices) == ("w2", {"n": 1})
    forget_worker(yard.db, worker="w1")
    assert [worker.id for worker in list_workers(yard.db)] == ["w2"]
    yard.advance(61)
    assert list_workers(yard.db) == []
