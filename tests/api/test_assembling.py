"""Completing an upload while it is being completed already, here or in another process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from s3_server import S3Server
from stiefel_api.keeping import assemble
from stiefel_api.problems import Problem
from stiefel_api.service import Service
from stiefel_jobs.blobs import Blobs
from stiefel_jobs.database import migrate
from stiefel_jobs.records import Blob, Upload
from stiefel_jobs.settings import Settings
from stiefel_jobs.store import artifacts, uploads

TENANT = "acme"
PART = 5 * 2**20
DATA = os.urandom(PART + 1000)


class Interrupted(Blobs):
    """A store in which something else happens before parts are put together."""

    meanwhile: Callable[[], object]

    def put_objects(self, tenant: str, keys: Sequence[str], *, sha256: str | None = None) -> Blob:
        self.meanwhile()
        return super().put_objects(tenant, keys, sha256=sha256)


@pytest.fixture(params=["local", "s3"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    chosen = Settings(data_dir=tmp_path)
    if request.param == "s3":
        s3: S3Server = request.getfixturevalue("s3")
        chosen = Settings(
            data_dir=tmp_path,
            store_url=s3.bucket("assembling"),
            s3_endpoint=s3.endpoint,
            s3_access_key_id=s3.access_key,  # type: ignore[arg-type]
            s3_secret_access_key=s3.secret_key,  # type: ignore[arg-type]
        )
    migrate(chosen.database_url)
    return chosen


@pytest.fixture
def other(settings: Settings) -> Iterator[Service]:
    """The same service in another process."""
    service = Service.of(settings)
    yield service
    service.db.close()


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """A service that can be interrupted."""
    service = replace(Service.of(settings), blobs=Interrupted.of(settings))
    yield service
    service.db.close()


@pytest.fixture
def upload(other: Service) -> Upload:
    """All of its parts have arrived."""
    made = uploads.create_upload(
        other.db, tenant=TENANT, filename="x.bin", size=len(DATA), part_size=PART, ttl_s=600
    )
    for number in (1, 2):
        piece = DATA[(number - 1) * PART : number * PART]
        other.blobs.put_object(uploads.part_key(made, number), [piece])
    return made


def when_interrupted(service: Service, meanwhile: Callable[[], object]) -> None:
    assert isinstance(service.blobs, Interrupted)
    service.blobs.meanwhile = meanwhile


def test_another_process_that_is_faster_makes_the_artifact(
    service: Service, other: Service, upload: Upload
) -> None:
    """It takes the parts away underneath the slower one."""
    theirs = []
    when_interrupted(service, lambda: theirs.append(assemble(other, upload)))
    assert [assemble(service, upload)] == theirs
    assert artifacts.list_artifacts(service.db, tenant=TENANT).items == theirs


def test_whoever_comes_after_the_end_gets_the_artifact(
    service: Service, other: Service, upload: Upload
) -> None:
    """The upload was still open when this request looked it up."""
    assert assemble(other, upload) == assemble(service, upload)
    assert len(artifacts.list_artifacts(service.db, tenant=TENANT).items) == 1


def test_a_repetition_in_the_same_process_is_told_to_wait(service: Service, upload: Upload) -> None:
    refusals = []

    def again() -> None:
        with pytest.raises(Problem) as raised:
            assemble(service, upload)
        refusals.append(raised.value)

    when_interrupted(service, again)
    artifact = assemble(service, upload)
    assert [(refusal.status, refusal.code) for refusal in refusals] == [(503, "upload_assembling")]
    assert refusals[0].headers == {"Retry-After": "1"}
    assert assemble(service, upload) == artifact


def test_an_upload_given_up_meanwhile_becomes_nothing(
    service: Service, other: Service, upload: Upload
) -> None:
    def give_up() -> None:
        aborted = uploads.abort_upload(other.db, tenant=TENANT, upload_id=upload.id)
        uploads.drop_parts(other.blobs, aborted)

    when_interrupted(service, give_up)
    with pytest.raises(Problem) as raised:
        assemble(service, upload)
    assert (raised.value.status, raised.value.code) == (410, "upload_aborted")
    assert artifacts.list_artifacts(service.db, tenant=TENANT).items == []


def test_many_completions_at_once_end_in_one_artifact(client: httpx.Client) -> None:
    data = os.urandom(3 * PART)
    begun = client.post("/v1/uploads", json={"filename": "x.bin", "size": len(data)}).json()
    for part in begun["parts"]:
        send = httpx.put if part["url"].startswith("http") else client.put
        send(part["url"], content=data[(part["number"] - 1) * PART : part["number"] * PART])

    def complete(_: int) -> httpx.Response:
        return client.post(f"/v1/uploads/{begun['id']}/complete")

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(complete, range(6)))
    assert {answer.status_code for answer in answers} <= {201, 503}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert len(client.get("/v1/artifacts").json()["data"]) == 1
