from __future__ import annotations

from pathlib import Path

import pytest
from yard import TENANT, Yard

from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import Database
from stiefel_jobs.errors import NotFoundError, UploadError
from stiefel_jobs.records import NewArtifact, Upload
from stiefel_jobs.store import uploads

MIB = 2**20
NEW = NewArtifact("text", "x.txt", "0" * 64, 3)


def begin(db: Database, size: int = 12 * MIB, **more: object) -> Upload:
    options = {"tenant": TENANT, "filename": "x.txt", "part_size": 5 * MIB, "ttl_s": 100.0, **more}
    return uploads.create_upload(db, size=size, **options)  # type: ignore[arg-type]


def complete(db: Database, upload: Upload) -> str:
    options = {"tenant": TENANT, "upload_id": upload.id, "new": NEW, "ttl_s": None}
    return uploads.complete_upload(db, **options).id  # type: ignore[arg-type]


def test_parts_cover_the_file(db: Database) -> None:
    upload = begin(db)
    assert uploads.part_count(upload) == 3
    assert [uploads.part_length(upload, n) for n in (1, 2, 3)] == [5 * MIB, 5 * MIB, 2 * MIB]
    for number in (0, 4, -1):
        with pytest.raises(UploadError, match="part"):
            uploads.part_length(upload, number)


def test_an_empty_file_has_one_empty_part(db: Database) -> None:
    upload = begin(db, size=0)
    assert (uploads.part_count(upload), uploads.part_length(upload, 1)) == (1, 0)


def test_parts_grow_so_that_they_are_never_too_many(db: Database) -> None:
    upload = begin(db, size=2**40)
    assert uploads.part_count(upload) <= uploads.MAX_PARTS
    assert upload.part_size % MIB == 0


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_received_parts_are_read_from_the_store(
    db: Database, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "s3":
        store: Blobs = request.getfixturevalue("s3_blobs")
    else:
        store = Blobs(f"file://{tmp_path}/store")
    upload, other = begin(db, size=6 * MIB), begin(db, size=6 * MIB)
    assert uploads.received_parts(store, upload) == ()
    store.put_object(uploads.part_key(upload, 2), [bytes(MIB)])
    store.put_object(uploads.part_key(upload, 1), [b"too short"])
    store.put_object(uploads.part_key(upload, 3), [b"no such part"])
    store.put_object(uploads.part_key(other, 1), [bytes(5 * MIB)])
    assert [(p.number, p.size) for p in uploads.received_parts(store, upload)] == [(2, MIB)]
    uploads.drop_parts(store, upload)
    assert uploads.received_parts(store, upload) == ()
    assert len(uploads.received_parts(store, other)) == 1


def test_an_upload_becomes_one_artifact_only(db: Database) -> None:
    upload = begin(db)
    assert complete(db, upload) == complete(db, upload)
    done = uploads.get_upload(db, tenant=TENANT, upload_id=upload.id)
    assert (done.state, done.artifact_id) == ("completed", complete(db, upload))
    assert uploads.abort_upload(db, tenant=TENANT, upload_id=upload.id).state == "completed"


def test_an_aborted_upload_stays_so(db: Database) -> None:
    upload = begin(db)
    for _ in range(2):
        assert uploads.abort_upload(db, tenant=TENANT, upload_id=upload.id).state == "aborted"
    with pytest.raises(UploadError) as raised:
        complete(db, upload)
    assert raised.value.code == "upload_aborted"


def test_an_expired_upload_takes_nothing_more(yard: Yard) -> None:
    upload, done = begin(yard.db), begin(yard.db)
    artifact = complete(yard.db, done)
    yard.advance(101)
    with pytest.raises(UploadError) as raised:
        uploads.get_upload(yard.db, tenant=TENANT, upload_id=upload.id)
    assert raised.value.code == "upload_expired"
    assert raised.value.fix
    with pytest.raises(UploadError):
        complete(yard.db, upload)
    assert complete(yard.db, done) == artifact


def test_another_tenants_upload_does_not_exist(db: Database) -> None:
    upload = begin(db)
    with pytest.raises(NotFoundError):
        uploads.get_upload(db, tenant="rival", upload_id=upload.id)
    with pytest.raises(NotFoundError):
        uploads.abort_upload(db, tenant="rival", upload_id=upload.id)
    with pytest.raises(NotFoundError):
        uploads.complete_upload(db, tenant="rival", upload_id=upload.id, new=NEW, ttl_s=None)
