from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select
from yard import TENANT, Yard, check_history

from stiefel_jobs.batch_records import BatchSubmitted, NewBatch
from stiefel_jobs.database import Database
from stiefel_jobs.errors import IdempotencyConflictError, LimitError, NotFoundError
from stiefel_jobs.records import Submission
from stiefel_jobs.states import State
from stiefel_jobs.store.batches import (
    batch_jobs,
    cancel_batch,
    earlier_batch,
    get_batch,
    list_batches,
    submit_batch,
)
from stiefel_jobs.store.outbox import unsent
from stiefel_jobs.store.queries import list_jobs, versions
from stiefel_jobs.store.submit import submit
from stiefel_jobs.tables import batches, jobs

AXES = [{"path": "seed", "values": [2, 1, 0]}]


def cells(count: int = 3, **values: Any) -> list[tuple[str, Submission]]:
    return [
        (f"seed={seed}", Submission("project.unitary", {"seed": seed}, **values))
        for seed in reversed(range(count))
    ]


def send(db: Database, key: str | None = None, **options: Any) -> BatchSubmitted:
    new = NewBatch(options.pop("cells", cells()), AXES, name="a table", labels={"team": "nlp"})
    arguments = {"tenant": TENANT, "new": new, "fingerprint": "f", "idempotency_key": key}
    return submit_batch(db, **{**arguments, **options})


def count(db: Database) -> tuple[int, int]:
    with db.read() as connection:
        found = [select(func.count()).select_from(table) for table in (batches, jobs)]
        return tuple(connection.execute(query).scalar_one() for query in found)


def test_a_batch_and_its_jobs_are_written_together_in_order(yard: Yard) -> None:
    made = send(yard.db, cells=cells(deadline_s=60.0, labels={"team": "nlp"}))
    batch, found = batch_jobs(yard.db, tenant=TENANT, batch_id=made.batch.id)
    assert batch == made.batch == get_batch(yard.db, tenant=TENANT, batch_id=batch.id)
    assert (batch.name, batch.size, batch.axes) == ("a table", 3, AXES)
    assert (batch.counts, batch.version) == ({State.QUEUED: 3}, 3)
    assert not batch.finished
    assert [job.custom_id for job in found] == ["seed=2", "seed=1", "seed=0"]
    assert [job.spec["seed"] for job in found] == [2, 1, 0]
    assert tuple(job.id for job in found) == made.job_ids
    assert {job.batch_id for job in found} == {batch.id}
    assert found[0].deadline_at == pytest.approx(found[0].created_at + 60, abs=0.5)
    assert [row.job_id for row in unsent(yard.db)] == list(made.job_ids)
    for job in found:
        check_history(yard.events(job.id))
    page = list_jobs(yard.db, tenant=TENANT, batch_id=batch.id, labels={"team": "nlp"})
    assert [job.id for job in page.items] == list(reversed(made.job_ids))


def test_a_refused_batch_leaves_nothing(yard: Yard) -> None:
    mine, theirs = yard.artifact(), yard.artifact(tenant="rival")
    faulty = [
        ("good", Submission("m", {}, inputs={"model.safetensors": mine})),
        ("bad", Submission("m", {}, inputs={"model.safetensors": theirs})),
    ]
    with pytest.raises(NotFoundError, match=theirs):
        send(yard.db, "k", cells=faulty)
    assert count(yard.db) == (0, 0)
    assert unsent(yard.db) == []
    assert not send(yard.db, "k").replayed  # the key was not used up


def test_the_quota_holds_for_the_whole_batch(yard: Yard) -> None:
    yard.submit()
    with pytest.raises(LimitError, match="1 jobs are unfinished, and 3 more"):
        send(yard.db, max_live=3)
    assert count(yard.db) == (0, 1)
    assert send(yard.db, max_live=4).batch.size == 3


def test_the_same_key_gives_the_same_batch_and_no_job(yard: Yard) -> None:
    first, second = send(yard.db, "k"), send(yard.db, "k")
    assert (first.replayed, second.replayed) == (False, True)
    assert (first.batch, first.job_ids) == (second.batch, second.job_ids)
    found = earlier_batch(yard.db, tenant=TENANT, key="k", fingerprint="f")
    assert found is not None
    assert found.batch.id == first.batch.id
    assert earlier_batch(yard.db, tenant="rival", key="k", fingerprint="f") is None
    with pytest.raises(IdempotencyConflictError):
        send(yard.db, "k", fingerprint="another")
    with pytest.raises(IdempotencyConflictError):
        submit(yard.db, tenant=TENANT, submission=Submission("m", {}), idempotency_key="k")
    assert count(yard.db) == (1, 3)


def test_many_identical_requests_at_once_make_one_batch(db: Database) -> None:
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: send(db, "k"), range(40)))
    assert len({answer.batch.id for answer in answers}) == 1
    assert sum(not answer.replayed for answer in answers) == 1
    assert count(db) == (1, 3)


def test_counts_and_version_follow_the_jobs(yard: Yard) -> None:
    made = send(yard.db)
    watched = [made.batch.id, made.job_ids[0]]
    before = versions(yard.db, watched)
    assert before == {made.batch.id: 3, made.job_ids[0]: 1}
    yard.claim(job_id=made.job_ids[1])
    batch = get_batch(yard.db, tenant=TENANT, batch_id=made.batch.id)
    assert batch.counts == {State.QUEUED: 2, State.RUNNING: 1}
    after = versions(yard.db, watched)
    assert after == {made.batch.id: batch.version, made.job_ids[0]: 1}
    assert batch.version > 3


def test_cancelling_ends_what_has_not_ended(yard: Yard) -> None:
    made = send(yard.db)
    yard._to_failed(yard.claim(job_id=made.job_ids[0]))
    yard._to_finalizing(yard.claim(job_id=made.job_ids[1]))
    for _ in range(2):
        batch = cancel_batch(yard.db, tenant=TENANT, batch_id=made.batch.id)
        assert batch.counts == {State.FAILED: 1, State.FINALIZING: 1, State.CANCELLED: 1}
        assert batch.finished_at is None


def test_a_batch_ends_with_its_last_job(yard: Yard) -> None:
    made = send(yard.db)
    cancel_batch(yard.db, tenant=TENANT, batch_id=made.batch.id)
    batch, found = batch_jobs(yard.db, tenant=TENANT, batch_id=made.batch.id)
    assert batch.finished
    assert batch.finished_at == max(job.finished_at or 0 for job in found)


def test_batches_are_the_tenants_own(yard: Yard) -> None:
    mine, theirs = send(yard.db).batch, send(yard.db, tenant="rival").batch
    for look in (get_batch, batch_jobs, cancel_batch):
        with pytest.raises(NotFoundError, match="does not exist"):
            look(yard.db, tenant=TENANT, batch_id=theirs.id)
    assert [batch.id for batch in list_batches(yard.db, tenant=TENANT).items] == [mine.id]
    assert list_jobs(yard.db, tenant=TENANT, batch_id=theirs.id).items == []


def test_batches_are_listed_newest_first_by_page(yard: Yard) -> None:
    made = [send(yard.db).batch.id for _ in range(3)]
    first = list_batches(yard.db, tenant=TENANT, limit=2)
    rest = list_batches(yard.db, tenant=TENANT, limit=2, after=first.next)
    assert [batch.id for batch in first.items + rest.items] == made[::-1]
    assert first.items[0].counts == {State.QUEUED: 3}
    assert rest.next is None
