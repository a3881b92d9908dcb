from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from yard import TENANT, Yard

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database
from stiefel_jobs.errors import LimitError, NotFoundError, StoreError
from stiefel_jobs.records import Artifact, NewArtifact, Segment, StateFile
from stiefel_jobs.states import State
from stiefel_jobs.store import actions, artifacts, finish, progress, uploads
from stiefel_jobs.store.garbage import GRACE_S, RETRY_S, collect_garbage


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(f"file://{tmp_path}/store")


def keep(
    db: Database,
    blobs: Blobs,
    data: bytes,
    *,
    tenant: str = TENANT,
    ttl_s: float | None = None,
    name: str = "x.txt",
) -> Artifact:
    blob = blobs.put_stream(tenant, [data])
    new = NewArtifact("text", name, blob.sha256, blob.size, {"lines": 1})
    return artifacts.add_artifact(db, tenant=tenant, new=new, ttl_s=ttl_s)


def reuse(
    db: Database,
    sha256: str,
    *,
    tenant: str = TENANT,
    name: str = "x.txt",
    ttl_s: float | None = None,
) -> Artifact | None:
    return artifacts.reuse_artifact(db, tenant=tenant, sha256=sha256, name=name, ttl_s=ttl_s)


def age(blobs: Blobs, tmp_path: Path, seconds: float) -> None:
    """Make every object look as if it had been written that long ago."""
    then = time.time() - seconds
    for stored in blobs.list(""):
        os.utime(tmp_path / "store" / stored.key, (then, then))


def test_an_artifact_is_found_by_id_digest_and_name(db: Database, blobs: Blobs) -> None:
    made = keep(db, blobs, b"one")
    assert artifacts.get_artifact(db, tenant=TENANT, artifact_id=made.id) == made
    assert made.meta == {"lines": 1}

    assert reuse(db, made.sha256, name="x.txt") == made
    assert reuse(db, made.sha256, name="y.txt") is None
    assert reuse(db, "0" * 64, name="x.txt") is None


@pytest.mark.parametrize(
    ("had", "ttl_s", "left"),
    [(10.0, 100.0, 100.0), (500.0, 100.0, 499.0), (None, 100.0, None), (10.0, None, None)],
)
def test_an_artifact_used_again_lives_as_long_as_a_new_one(
    yard: Yard, blobs: Blobs, had: float | None, ttl_s: float | None, left: float | None
) -> None:
    made = keep(yard.db, blobs, b"one", ttl_s=had)
    yard.advance(1)
    again = reuse(yard.db, made.sha256, ttl_s=ttl_s)
    assert again is not None
    assert again.id == made.id
    if left is None:
        assert again.expires_at is None
    else:
        assert again.expires_at == pytest.approx(made.created_at + 1 + left, abs=5)
    assert artifacts.get_artifact(yard.db, tenant=TENANT, artifact_id=made.id) == again


def test_the_newest_of_several_is_used_again(db: Database, blobs: Blobs) -> None:
    keep(db, blobs, b"one", ttl_s=10)
    newer = keep(db, blobs, b"one", ttl_s=20)
    keep(db, blobs, b"one", name="y.txt")
    again = reuse(db, newer.sha256, ttl_s=15)
    assert again == newer


def test_nobody_else_finds_it(db: Database, blobs: Blobs) -> None:
    made = keep(db, blobs, b"one")
    for tenant in ("rival", ""):
        with pytest.raises(NotFoundError):
            artifacts.get_artifact(db, tenant=tenant, artifact_id=made.id)
        with pytest.raises(NotFoundError):
            artifacts.delete_artifact(db, tenant=tenant, artifact_id=made.id)
        assert reuse(db, made.sha256, tenant=tenant) is None
        assert artifacts.list_artifacts(db, tenant=tenant).items == []


def test_an_expired_artifact_is_gone(yard: Yard, blobs: Blobs) -> None:
    made = keep(yard.db, blobs, b"one", ttl_s=100)
    assert made.expires_at == pytest.approx(made.created_at + 100)
    yard.advance(101)
    with pytest.raises(NotFoundError):
        artifacts.get_artifact(yard.db, tenant=TENANT, artifact_id=made.id)
    assert reuse(yard.db, made.sha256, ttl_s=100) is None
    assert artifacts.list_artifacts(yard.db, tenant=TENANT).items == []


def test_pages_are_newest_first(db: Database, blobs: Blobs) -> None:
    made = [keep(db, blobs, bytes([n])).id for n in range(7)]
    seen: list[str] = []
    after = None
    while True:
        page = artifacts.list_artifacts(db, tenant=TENANT, after=after, limit=3)
        seen += [artifact.id for artifact in page.items]
        if (after := page.next) is None:
            break
    assert seen == made[::-1]


def test_a_tenants_bytes_are_counted_once(db: Database, blobs: Blobs) -> None:
    keep(db, blobs, b"x" * 60)
    keep(db, blobs, b"x" * 60, name="the same.txt")
    keep(db, blobs, b"y" * 60, tenant="rival")
    blob = blobs.put_stream(TENANT, [b"z" * 60])
    new = NewArtifact("text", "z", blob.sha256, blob.size)
    with pytest.raises(LimitError) as raised:
        artifacts.add_artifact(db, tenant=TENANT, new=new, max_stored=100)
    assert raised.value.code == "storage_full"
    assert len(artifacts.list_artifacts(db, tenant=TENANT).items) == 2
    artifacts.add_artifact(db, tenant=TENANT, new=new, max_stored=120)


def test_bytes_go_when_the_last_name_is_gone_and_the_grace_over(
    yard: Yard, blobs: Blobs, tmp_path: Path
) -> None:
    first, second = keep(yard.db, blobs, b"shared"), keep(yard.db, blobs, b"shared", name="b")
    kept = keep(yard.db, blobs, b"kept")
    artifacts.delete_artifact(yard.db, tenant=TENANT, artifact_id=first.id)
    yard.advance(GRACE_S + 1)
    age(blobs, tmp_path, GRACE_S + 1)
    assert collect_garbage(yard.db, blobs) == 0

    artifacts.delete_artifact(yard.db, tenant=TENANT, artifact_id=second.id)
    assert collect_garbage(yard.db, blobs) == 1
    assert not blobs.exists(TENANT, first.sha256)
    assert blobs.exists(TENANT, kept.sha256)
    assert collect_garbage(yard.db, blobs) == 0


def test_young_bytes_without_a_name_are_left_alone(
    db: Database, blobs: Blobs, tmp_path: Path
) -> None:
    """Their writer may be about to commit."""
    blob = blobs.put_stream(TENANT, [b"about to be named"])
    assert collect_garbage(db, blobs) == 0
    age(blobs, tmp_path, GRACE_S + 1)
    assert collect_garbage(db, blobs) == 1
    assert not blobs.exists(TENANT, blob.sha256)


def test_bytes_written_again_after_their_row_went_are_left_alone(
    yard: Yard, blobs: Blobs, tmp_path: Path
) -> None:
    made = keep(yard.db, blobs, b"twice")
    artifacts.delete_artifact(yard.db, tenant=TENANT, artifact_id=made.id)
    yard.advance(GRACE_S + 1)
    age(blobs, tmp_path, GRACE_S + 1)
    blobs.put_stream(TENANT, [b"twice"])
    assert collect_garbage(yard.db, blobs) == 0
    assert blobs.exists(TENANT, made.sha256)


def test_one_tenants_garbage_is_not_anothers(yard: Yard, blobs: Blobs, tmp_path: Path) -> None:
    mine = keep(yard.db, blobs, b"both")
    theirs = keep(yard.db, blobs, b"both", tenant="rival")
    artifacts.delete_artifact(yard.db, tenant=TENANT, artifact_id=mine.id)
    yard.advance(GRACE_S + 1)
    age(blobs, tmp_path, GRACE_S + 1)
    collect_garbage(yard.db, blobs)
    assert not blobs.exists(TENANT, mine.sha256)
    assert blobs.exists("rival", theirs.sha256)


def test_what_a_live_job_needs_outlives_its_time(yard: Yard, blobs: Blobs, tmp_path: Path) -> None:
    source = keep(yard.db, blobs, b"input", ttl_s=10)
    job = yard.submit(inputs={"model.safetensors": source.id})
    held = yard.claim()
    assert held is not None
    state = blobs.put_stream(TENANT, [b"state"])
    files = [StateFile("s", 5, [Segment(state.sha256, 5)])]
    progress.checkpoint(yard.db, job_id=job.id, fence=held.fence, step=1, files=files)
    with pytest.raises(StoreError) as raised:
        artifacts.delete_artifact(yard.db, tenant=TENANT, artifact_id=source.id)
    assert raised.value.code == "artifact_in_use"

    yard.advance(GRACE_S + 11)
    age(blobs, tmp_path, GRACE_S + 11)
    assert collect_garbage(yard.db, blobs) == 0
    assert blobs.exists(TENANT, source.sha256)
    assert blobs.exists(TENANT, state.sha256)


def test_a_cancelled_jobs_checkpoint_waits_a_week_for_a_retry(
    yard: Yard, blobs: Blobs, tmp_path: Path
) -> None:
    job = yard.submit()
    held = yard.claim()
    assert held is not None
    state = blobs.put_stream(TENANT, [b"state"])
    files = [StateFile("s", 5, [Segment(state.sha256, 5)])]
    progress.checkpoint(yard.db, job_id=job.id, fence=held.fence, step=1, files=files)
    actions.cancel(yard.db, tenant=TENANT, job_id=job.id)
    finish.release(yard.db, job_id=job.id, fence=held.fence, to=State.CANCELLED, reason="cancelled")
    age(blobs, tmp_path, RETRY_S + 2)
    yard.advance(RETRY_S - 60)
    assert collect_garbage(yard.db, blobs) == 0
    yard.advance(120)
    assert collect_garbage(yard.db, blobs) == 1
    assert not blobs.exists(TENANT, state.sha256)


def test_staged_bytes_of_finished_and_dead_uploads_go(
    yard: Yard, blobs: Blobs, tmp_path: Path
) -> None:
    def begin(ttl_s: float) -> str:
        upload = uploads.create_upload(
            yard.db, tenant=TENANT, filename="x", size=3, part_size=5, ttl_s=ttl_s
        )
        key = uploads.part_key(upload, 1)
        blobs.put_object(key, [b"abc"])
        return key

    live, dead = begin(10 * GRACE_S), begin(10)
    stream = blobs.staging_key("streams")
    blobs.put_object(stream, [b"a reader died"])
    yard.advance(GRACE_S + 11)
    collect_garbage(yard.db, blobs)
    assert blobs.look(dead), "too young"
    age(blobs, tmp_path, GRACE_S + 11)
    collect_garbage(yard.db, blobs)
    assert [bool(blobs.look(key)) for key in (live, dead, stream)] == [True, False, False]


def test_collection_works_on_s3(db: Database, s3_blobs: Blobs) -> None:
    made = keep(db, s3_blobs, b"one", ttl_s=0.01)
    kept = keep(db, s3_blobs, b"two")
    time.sleep(1.1)  # S3 counts in whole seconds
    assert collect_garbage(db, s3_blobs, grace_s=0.0) == 1
    assert not s3_blobs.exists(TENANT, made.sha256)
    assert s3_blobs.exists(TENANT, kept.sha256)


def test_a_submission_and_a_deletion_do_not_miss_each_other(yard: Yard, blobs: Blobs) -> None:
    source = keep(yard.db, blobs, b"input")
    job = yard.submit(inputs={"model.safetensors": source.id})
    actions.cancel(yard.db, tenant=TENANT, job_id=job.id)
    artifacts.delete_artifact(yard.db, tenant=TENANT, artifact_id=source.id)
    with pytest.raises(NotFoundError):
        yard.submit(inputs={"model.safetensors": source.id})
