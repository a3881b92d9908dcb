"""Uploads that resume and repeat nothing; downloads that survive breaks and distrust bytes."""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

import pytest
from stub_service import Answer, Request, StubService, problem, stub_service

from stiefel_client import AsyncStiefel, Job, Stiefel, StiefelApiError, TransferError, transfers

DATA = os.urandom(2_500_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
PART = 1_000_000
ARTIFACT = {"id": "art_1", "sha256": DIGEST, "bytes": len(DATA)}


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(DATA)
    return path


def upload_view(
    received: set[int], base: str = "", upload_id: str = "upl_1", status: str = "open"
) -> dict[str, object]:
    parts = [
        {"number": n, "url": f"{base}/v1/uploads/{upload_id}/parts/{n}", "received": n in received}
        for n in (1, 2, 3)
        if status == "open"
    ]
    return {"id": upload_id, "part_size": PART, "parts": parts, "status": status}


def script_upload(
    service: StubService,
    received: set[int] = frozenset(),
    upload_id: str = "upl_1",
    prefix: str = "",
) -> None:
    root = f"{prefix}/v1/uploads"
    begun = upload_view(set(), upload_id=upload_id)
    service.on("POST", root, Answer(201, begun))
    service.on(
        "GET", f"{root}/{upload_id}", Answer(200, upload_view(received, upload_id=upload_id))
    )
    for number in (1, 2, 3):
        service.on("PUT", f"{root}/{upload_id}/parts/{number}", Answer(204))
    service.on("POST", f"{root}/{upload_id}/complete", Answer(201, ARTIFACT))


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


def break_off(service, client, weights, answer: Answer | None = None) -> None:
    """Begin ``upl_1`` and fail at its second part."""
    script_upload(service)
    service.on("PUT", "/v1/uploads/upl_1/parts/2", answer or problem(500, "internal_error", "no"))
    with pytest.raises(StiefelApiError):
        client.uploads.upload(weights)


def asked(service: StubService, since: int) -> list[tuple[str, str]]:
    return [(r.method, r.path) for r in service.requests[since:]]


REST = [
    ("PUT", "/v1/uploads/upl_1/parts/2"),
    ("PUT", "/v1/uploads/upl_1/parts/3"),
    ("POST", "/v1/uploads/upl_1/complete"),
]


@pytest.mark.parametrize("status", [500, 401, 403, 429])
def test_a_broken_upload_goes_on_at_the_missing_part(service, client, weights, status) -> None:
    break_off(service, client, weights, problem(status, "broken", "no"))
    before = len(service.requests)
    script_upload(service, received={1})
    service.on("PUT", "/v1/uploads/upl_1/parts/2", problem(503, "busy", "later"), Answer(204))
    client.uploads.upload(weights)
    assert asked(service, before) == [("GET", "/v1/uploads/upl_1"), REST[0], *REST]


def test_an_upload_that_the_service_forgot_starts_anew(service, client, weights) -> None:
    break_off(service, client, weights)
    script_upload(service)
    service.on("GET", "/v1/uploads/upl_1", problem(410, "upload_expired", "too late"))
    assert client.uploads.upload(weights).id == "art_1"


def test_an_aborted_upload_is_not_continued(service, client, weights) -> None:
    break_off(service, client, weights)
    script_upload(service, upload_id="upl_2")
    service.on("GET", "/v1/uploads/upl_1", Answer(200, upload_view(set(), status="aborted")))
    assert client.uploads.upload(weights).id == "art_1"
    assert len(service.seen("POST", "/v1/uploads/upl_2/complete")) == 1


def test_a_completed_upload_is_asked_for_by_its_bytes(service, client, weights) -> None:
    """So that the service sees to it that the artifact does not expire soon."""
    break_off(service, client, weights)
    before = len(service.requests)
    service.on("GET", "/v1/uploads/upl_1", Answer(200, upload_view(set(), status="completed")))
    service.on("POST", "/v1/uploads", Answer(200, ARTIFACT))
    assert client.uploads.upload(weights).id == "art_1"
    assert asked(service, before) == [("GET", "/v1/uploads/upl_1"), ("POST", "/v1/uploads")]


@pytest.mark.parametrize("at", ["parts/3", "complete"])
@pytest.mark.parametrize("status", [409, 410, 413, 422])
def test_a_refused_upload_is_not_tried_again(service, client, weights, at, status) -> None:
    """Changed while it was sent, the file is refused; put back, it is a new upload."""
    script_upload(service)
    method = "POST" if at == "complete" else "PUT"
    service.on(method, f"/v1/uploads/upl_1/{at}", problem(status, "refused", "no"))
    with pytest.raises(StiefelApiError, match="refused"):
        client.uploads.upload(weights)
    before = len(service.requests)
    script_upload(service, upload_id="upl_2")
    assert client.uploads.upload(weights).id == "art_1"
    assert asked(service, before)[0] == ("POST", "/v1/uploads")


def test_under_another_name_it_is_another_upload(service, client, weights) -> None:
    """The name decides what the artifact is called, and of which kind it is."""
    unnamed = weights.rename(weights.with_name("a.tmp"))
    break_off(service, client, unnamed)
    before = len(service.requests)
    script_upload(service, upload_id="upl_2")
    client.uploads.upload(unnamed.rename(weights))
    assert asked(service, before)[0] == ("POST", "/v1/uploads")
    assert b'"model.safetensors"' in service.requests[before].body


def test_an_upload_that_another_ends_is_noticed(service, client, weights, monkeypatch) -> None:
    """No part is left to name a URL when URLs are asked for anew."""
    monkeypatch.setattr(transfers, "URLS_LAST", -1.0)
    script_upload(service)
    service.on("GET", "/v1/uploads/upl_1", Answer(200, upload_view(set(), status="aborted")))
    with pytest.raises(TransferError, match="aborted"):
        client.uploads.upload(weights)


def test_a_service_below_a_prefix_gets_the_parts_there(service, weights) -> None:
    script_upload(service, prefix="/stiefel")
    with Stiefel(f"{service.url}/stiefel", "stf_test_key") as client:
        assert client.uploads.upload(weights).id == "art_1"
    sent = [r for r in service.requests if r.method == "PUT"]
    assert b"".join(r.body for r in sent) == DATA
    assert all(r.path.startswith("/stiefel/v1/uploads/upl_1/parts/") for r in sent)
    assert all(r.headers["authorization"] == "Bearer stf_test_key" for r in sent)


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


def test_presigned_parts_do_not_see_the_key_on_the_services_host(service, client, weights) -> None:
    """A store behind the same host refuses a request that carries two rights."""
    script_upload(service)
    service.on("POST", "/v1/uploads", Answer(201, upload_view(set(), base=service.url)))
    client.uploads.upload(weights)
    sent = [r for r in service.requests if r.method == "PUT"]
    assert len(sent) == 3
    assert not any("authorization" in r.headers for r in sent)


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
    assert [path.name for path in tmp_path.glob("out*")] == ["out.safetensors"]
    first, *rest = service.seen("GET", path)
    assert "range" not in first.headers
    assert all(r.headers["if-range"] == f'"{DIGEST}"' for r in rest)
    requests = len(service.requests)
    client.artifacts.download("art_1", target)
    assert len(service.requests) == requests + 1  # the good file is not fetched again


def test_a_download_goes_on_in_another_process(service, client, tmp_path) -> None:
    target = tmp_path / "out"
    part = target.with_name(f"out.{DIGEST[:16]}.part")
    part.write_bytes(DATA[:123_456])
    service.on("GET", "/v1/artifacts/art_1", Answer(200, ARTIFACT))
    service.on("GET", "/v1/artifacts/art_1/content", content)
    client.artifacts.download("art_1", target)
    assert service.requests[-1].headers["range"] == "bytes=123456-"
    target.unlink()
    part.write_bytes(DATA)
    client.artifacts.download("art_1", target)
    assert target.read_bytes() == DATA


def test_half_of_another_file_is_not_continued(service, client, tmp_path) -> None:
    """It was to become the same target: the outputs of two jobs are both model.safetensors."""
    target = tmp_path / "out"
    old = os.urandom(1_000_000)
    other = {"id": "art_2", "sha256": hashlib.sha256(old).hexdigest(), "bytes": len(old)}
    service.on("GET", "/v1/artifacts/art_2", Answer(200, other))
    service.on("GET", "/v1/artifacts/art_2/content", Answer(200, old, cut=600_000), Answer(404))
    with pytest.raises(StiefelApiError):
        client.artifacts.download("art_2", target)
    service.on("GET", "/v1/artifacts/art_1", Answer(200, ARTIFACT))
    service.on("GET", "/v1/artifacts/art_1/content", content)
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
