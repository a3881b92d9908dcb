"""Uploads that resume and repeat nothing; downloads that survive breaks and distrust bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from stub_service import Answer, Request, StubService, problem, stub_service

from stiefel_client import AsyncStiefel, BadRequestError, Job, TransferError

DATA = os.urandom(2_500_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
PART = 1_000_000
ARTIFACT = {"id": "art_1", "sha256": DIGEST, "bytes": len(DATA)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DATA)
    return path


def upload_view(received: set[int], base: str = "") -> dict[str, object]:
    parts = [
        {"number": n, "url": f"{base}/v1/uploads/upl_1/parts/{n}", "received": n in received}
        for n in (1, 2, 3)
    ]
    return {"id": "upl_1", "part_size": PART, "parts": parts}


def script_upload(service: StubService, received: set[int] = frozenset()) -> None:
    service.on("POST", "/v1/uploads", Answer(201, upload_view(set())))
    service.on("GET", "/v1/uploads/upl_1", Answer(200, upload_view(received)))
    for number in (1, 2, 3):
        service.on("PUT", f"/v1/uploads/upl_1/parts/{number}", Answer(204))
    service.on("POST", "/v1/uploads/upl_1/complete", Answer(201, ARTIFACT))


def test_parts_are_sent_in_order_and_completed(service, client, weights) -> None:
    script_upload(service)
    seen: list[tuple[int, int]] = []
    artifact = client.uploads.upload(weights, on_bytes=lambda done, of: seen.append((done, of)))
    assert artifact.id == "art_1"
    sent = [r.body for r in service.requests if r.method == "PUT"]
    assert b"".join(sent) == DATA
    assert seen[-1] == (len(DATA), len(DATA))
    assert DIGEST.encode() in service.seen("POST", "/v1/uploads")[0].body


def test_bytes_already_owned_are_not_sent(service, client, weights) -> None:
    service.on("POST", "/v1/uploads", Answer(200, ARTIFACT))
    assert client.uploads.upload(weights).id == "art_1"
    assert len(service.requests) == 1


def test_a_broken_upload_goes_on_at_the_missing_part(service, client, weights) -> None:
    script_upload(service, received={1})
    service.on("PUT", "/v1/uploads/upl_1/parts/2", problem(400, "bad_part", "no"))
    with pytest.raises(BadRequestError):
        client.uploads.upload(weights)
    before = len(service.requests)
    service.on("PUT", "/v1/uploads/upl_1/parts/2", problem(503, "busy", "later"), Answer(204))
    client.uploads.upload(weights)
    again = [(r.method, r.path) for r in service.requests[before:]]
    assert again == [
        ("GET", "/v1/uploads/upl_1"),
        ("PUT", "/v1/uploads/upl_1/parts/2"),
        ("PUT", "/v1/uploads/upl_1/parts/2"),
        ("PUT", "/v1/uploads/upl_1/parts/3"),
        ("POST", "/v1/uploads/upl_1/complete"),
    ]


def test_an_upload_that_the_service_forgot_starts_anew(service, client, weights) -> None:
    script_upload(service)
    service.on("PUT", "/v1/uploads/upl_1/parts/2", problem(400, "bad_part", "no"))
    with pytest.raises(BadRequestError):
        client.uploads.upload(weights)
    script_upload(service)
    service.on("GET", "/v1/uploads/upl_1", problem(410, "upload_expired", "too late"))
    assert client.uploads.upload(weights).id == "art_1"


def test_other_bytes_at_the_service_are_an_error(service, client, weights) -> None:
    service.on("POST", "/v1/uploads", Answer(200, ARTIFACT | {"sha256": "0" * 64}))
    with pytest.raises(TransferError, match="sha256"):
        client.uploads.upload(weights)


def test_presigned_parts_do_not_see_the_key(service, client, weights) -> None:
    with stub_service() as store:
        script_upload(service)
        service.on("POST", "/v1/uploads", Answer(201, upload_view(set(), base=store.url)))
        for number in (1, 2, 3):
            store.on("PUT", f"/v1/uploads/upl_1/parts/{number}", Answer(200))
        client.uploads.upload(weights)
        assert len(store.requests) == 3
        assert not any("authorization" in r.headers for r in store.requests)


def content(request: Request) -> Answer:
    """The file, or its rest; the first two answers break off."""
    start = int(request.headers.get("range", "bytes=0-")[6:-1])
    if start >= len(DATA):
        return Answer(416)
    assert request.headers["accept-encoding"] == "identity"
    return Answer(206 if start else 200, DATA[start:], {"ETag": f'"{DIGEST}"'})


def breaking(request: Request) -> Answer:
    answer = content(request)
    answer.cut = 700_000
    return answer


def test_a_download_survives_breaks_and_asks_only_for_the_rest(service, client, tmp_path) -> None:
    path = "/v1/artifacts/art_1/content"
    service.on("GET", "/v1/artifacts/art_1", Answer(200, ARTIFACT))
    service.on("GET", path, breaking, breaking, content)
    target = tmp_path / "out.safetensors"
    assert client.artifacts.download("art_1", target) == target
    assert target.read_bytes() == DATA
    assert not target.with_name("out.safetensors.part").exists()
    first, *rest = service.seen("GET", path)
    assert "range" not in first.headers
    assert all(r.headers["if-range"] == f'"{DIGEST}"' for r in rest)
    requests = len(service.requests)
    client.artifacts.download("art_1", target)
    assert len(service.requests) == requests + 1  # the good file is not fetched again


def test_a_download_goes_on_in_another_process(service, client, tmp_path) -> None:
    target = tmp_path / "out"
    target.with_name("out.part").write_bytes(DATA[:123_456])
    service.on("GET", "/v1/artifacts/art_1", Answer(200, ARTIFACT))
    service.on("GET", "/v1/artifacts/art_1/content", content)
    client.artifacts.download("art_1", target)
    assert service.requests[-1].headers["range"] == "bytes=123456-"
    target.unlink()
    target.with_name("out.part").write_bytes(DATA)
    client.artifacts.download("art_1", target)
    assert target.read_bytes() == DATA


def test_wrong_bytes_never_become_the_file(service, client, tmp_path) -> None:
    service.on("GET", "/v1/artifacts/art_1", Answer(200, ARTIFACT))
    service.on("GET", "/v1/artifacts/art_1/content", Answer(200, b"x" + DATA[1:]))
    with pytest.raises(TransferError, match="promised"):
        client.artifacts.download("art_1", tmp_path / "out")
    assert list(tmp_path.glob("out*")) == []


def test_a_redirect_to_the_store_keeps_the_key_at_home(service, client, tmp_path) -> None:
    with stub_service() as store:
        store.on("GET", "/bucket/blob", breaking, content)
        service.on("GET", "/v1/artifacts/art_1", Answer(200, ARTIFACT))
        away = Answer(302, headers={"Location": f"{store.url}/bucket/blob?signature=s"})
        service.on("GET", "/v1/artifacts/art_1/content", away)
        client.artifacts.download("art_1", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == DATA
        first, second = store.requests
        assert "authorization" not in first.headers
        assert second.headers["range"] == "bytes=700000-"


def result(name: str) -> Job:
    file = {"artifact": "art_1", "sha256": DIGEST, "bytes": len(DATA), "kind": "safetensors"}
    view = {"id": "job_1", "status": "succeeded", "result": {"files": {name: file}}}
    return Job.model_validate(view)


@pytest.mark.parametrize("name", ["../evil", "a/b", "..", "", "a\\b"])
def test_a_file_name_cannot_leave_the_folder(client, tmp_path, name) -> None:
    with pytest.raises(TransferError, match="plain name"):
        client.jobs.download(result(name), tmp_path / "out")


def test_a_job_without_files_says_so(client, tmp_path) -> None:
    with pytest.raises(TransferError, match="has no files"):
        client.jobs.download(Job(id="job_1", status="running"), tmp_path)


def test_a_jobs_files_come_by_name_also_asynchronously(service, client, tmp_path) -> None:
    service.on("GET", "/v1/jobs/job_1/files/model.safetensors", content)
    job = result("model.safetensors")
    assert client.jobs.download(job, tmp_path / "a")[0].read_bytes() == DATA

    async def run() -> list[Path]:
        async with AsyncStiefel(service.url, "k") as other:
            return await other.jobs.download(job, tmp_path / "b")

    assert asyncio.run(run())[0].read_bytes() == DATA
