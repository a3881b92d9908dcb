from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select
from yard import TENANT, Yard, check_history, held

from stiefel_jobs.database import Database
from stiefel_jobs.errors import StaleFenceError
from stiefel_jobs.records import NewEvent, Point, Progress, Segment, StateFile
from stiefel_jobs.store.progress import KEPT_CHECKPOINTS, checkpoint, record
from stiefel_jobs.store.queries import checkpoints, metrics
from stiefel_jobs.tables import blobs, checkpoint_segments


def digest(number: int) -> str:
    return f"{number:064x}"


def grown(step: int) -> list[StateFile]:
    """A state file that gains a segment with every step."""
    return [StateFile("body.bin", 10 * step, [Segment(digest(n), 10) for n in range(step)])]


def segments(db: Database, job_id: str) -> set[str]:
    query = select(checkpoint_segments.c.sha256).where(checkpoint_segments.c.job_id == job_id)
    with db.read() as connection:
        return set(connection.execute(query).scalars())


def test_progress_metrics_and_events_arrive_together(yard: Yard) -> None:
    taken = yard.started()
    before = yard.get(taken.job_id)
    record(
        yard.db,
        **held(taken),
        progress=Progress("projecting", 3, 12, "tensor", {"tensor": "a.weight"}),
        metrics=[Point("defect", 3, 1e-7), Point("loss", 3, 0.5)],
        events=[NewEvent("job.log", {"text": "hello"}), NewEvent("job.log", {"text": "again"})],
    )
    job = yard.get(taken.job_id)
    assert job.progress == {
        "stage": "projecting",
        "done": 3,
        "total": 12,
        "unit": "tensor",
        "extra": {"tensor": "a.weight"},
    }
    assert job.version == before.version + 1
    assert job.last_seq == before.last_seq + 2
    assert [event.data["text"] for event in yard.events(taken.job_id)[-2:]] == ["hello", "again"]
    points = metrics(yard.db, tenant=TENANT, job_id=taken.job_id)
    assert [(p.name, p.step, p.value) for p in points] == [("defect", 3, 1e-7), ("loss", 3, 0.5)]
    check_history(yard.events(taken.job_id))


def test_the_rate_counts_from_where_this_attempt_began(yard: Yard) -> None:
    taken = yard.started()
    record(yard.db, **held(taken), progress=Progress("training", 40, 100))
    yard.advance(10)
    record(yard.db, **held(taken), progress=Progress("training", 60, 100))
    job = yard.get(taken.job_id)
    assert job.base_done == 40
    assert job.progress_at is not None
    assert job.base_at is not None
    assert job.progress_at - job.base_at == pytest.approx(10, abs=0.5)
    record(yard.db, **held(taken), progress=Progress("writing", 0, 5))
    assert yard.get(taken.job_id).base_done == 0
    yard.advance(31)
    again = yard.claim()
    assert yard.get(again.job_id).base_done is None


def test_a_repeated_step_replaces_its_points(yard: Yard) -> None:
    taken = yard.started()
    record(yard.db, **held(taken), metrics=[Point("loss", 1, 9.0), Point("loss", 1, 8.0)])
    record(yard.db, **held(taken), metrics=[Point("loss", 1, 0.25), Point("loss", 2, 0.125)])
    points = metrics(yard.db, tenant=TENANT, job_id=taken.job_id)
    assert [(p.step, p.value) for p in points] == [(1, 0.25), (2, 0.125)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_a_number_that_is_not_finite_becomes_null(yard: Yard, value: float | None) -> None:
    taken = yard.started()
    record(yard.db, **held(taken), metrics=[Point("loss", 1, value)])
    assert metrics(yard.db, tenant=TENANT, job_id=taken.job_id)[0].value is None


def test_metrics_are_read_in_pages(yard: Yard) -> None:
    taken = yard.started()
    points = [Point(name, step, step / 2) for step in range(5) for name in ("a", "b")]
    record(yard.db, **held(taken), metrics=points)
    read: list[tuple[int, str]] = []
    while page := metrics(
        yard.db,
        tenant=TENANT,
        job_id=taken.job_id,
        after=read[-1] if read else None,
        limit=3,
    ):
        read += [(point.step, point.name) for point in page]
    assert read == [(point.step, point.name) for point in points]
    only = metrics(yard.db, tenant=TENANT, job_id=taken.job_id, name="b")
    assert {point.name for point in only} == {"b"}


def test_checkpoints_keep_the_segments_they_need_and_no_more(yard: Yard) -> None:
    taken = yard.started()
    for step in range(1, 5):
        checkpoint(yard.db, **held(taken), step=step, files=grown(step))
    kept = checkpoints(yard.db, tenant=TENANT, job_id=taken.job_id)
    assert [c.step for c in kept] == [3, 4]
    assert len(kept) == KEPT_CHECKPOINTS
    assert kept[-1].size == 40
    assert segments(yard.db, taken.job_id) == {digest(n) for n in range(4)}
    for step in (5, 6):
        rewritten = [StateFile("body.bin", 9, [Segment(digest(99), 9)])]
        checkpoint(yard.db, **held(taken), step=step, files=rewritten)
    assert segments(yard.db, taken.job_id) == {digest(99)}
    with yard.db.read() as connection:
        known = set(connection.execute(select(blobs.c.sha256)).scalars())
    assert known >= {digest(99), digest(0)}  # bytes are the garbage collector's business


def test_a_checkpoint_is_told(yard: Yard) -> None:
    taken = yard.started()
    checkpoint(yard.db, **held(taken), step=7, files=grown(2))
    event = yard.events(taken.job_id)[-1]
    assert (event.type, event.data) == ("job.checkpoint", {"number": 1, "step": 7, "bytes": 20})


def test_a_checkpoint_without_files_is_one(yard: Yard) -> None:
    taken = yard.started()
    checkpoint(yard.db, **held(taken), step=0, files=[])
    assert checkpoints(yard.db, tenant=TENANT, job_id=taken.job_id)[0].files == ()


def test_a_stale_report_changes_nothing(yard: Yard) -> None:
    taken = yard.started()
    yard.advance(31)
    yard.claim(worker="w2")
    before = yard.get(taken.job_id)
    with pytest.raises(StaleFenceError):
        record(
            yard.db,
            **held(taken),
            progress=Progress("late", 1),
            metrics=[Point("loss", 1, 0.0)],
            events=[NewEvent("job.log", {})],
        )
    with pytest.raises(StaleFenceError):
        checkpoint(yard.db, **held(taken), step=1, files=grown(1))
    assert yard.get(taken.job_id) == before
    assert metrics(yard.db, tenant=TENANT, job_id=taken.job_id) == []
    assert checkpoints(yard.db, tenant=TENANT, job_id=taken.job_id) == []


def test_reports_at_once_leave_no_gap_in_the_events(yard: Yard) -> None:
    taken = yard.started()

    def report(number: int) -> None:
        record(yard.db, **held(taken), events=[NewEvent("job.log", {"n": number})] * 3)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, range(40)))
    story = yard.events(taken.job_id)
    assert [event.seq for event in story] == list(range(1, 123))
    assert yard.get(taken.job_id).last_seq == 122


def test_jobs_share_segments_while_they_checkpoint_at_once(db: Database) -> None:
    yard = Yard(db)
    taken = [yard.started() for _ in range(4)]

    def work(number: int) -> None:
        for step in range(1, 6):
            checkpoint(db, **held(taken[number]), step=step, files=grown(step))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    for one in taken:
        assert segments(db, one.job_id) == {digest(n) for n in range(5)}
