from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import httpx
import pytest
from house import House, checkpoint, problem, put, running, submit

from s3_server import S3Server

DATA = os.urandom(100_000)
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def path(client: httpx.Client) -> str:
    """Where the service itself sends 100,000 random bytes."""
    return f"/v1/artifacts/{put(client, DATA, 'data.bin')}/content?direct=false"


def test_the_whole(client: httpx.Client, path: str) -> None:
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["etag"] == f'"{SHA}"'
    assert answer.headers["content-length"] == "100000"
    assert answer.headers["accept-ranges"] == "bytes"
    digest = base64.b64encode(bytes.fromhex(SHA)).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["content-disposition"].startswith('attachment; filename="data.bin"')
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("header", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=500-", 500, 100_000),
        ("bytes=99999-", 99_999, 100_000),
        ("bytes=10-19", 10, 20),
        ("bytes=10-9999999", 10, 100_000),
        ("bytes=-7", 99_993, 100_000),
        ("bytes=-9999999", 0, 100_000),
    ],
)
def test_a_range(client: httpx.Client, path: str, header: str, start: int, end: int) -> None:
    answer = client.get(path, headers={"Range": header})
    assert (answer.status_code, answer.content) == (206, DATA[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/100000"
    assert answer.headers["content-length"] == str(end - start)


@pytest.mark.parametrize(
    "header",
    [
        "bytes=5-2",
        "bytes=-",
        "bytes=a-b",
        "lines=1-2",
        "bytes=0-1,5-6",
        "bytes=" + ",".join(f"{n}-{n}" for n in range(500)),
    ],
)
def test_other_ranges_get_the_whole(client: httpx.Client, path: str, header: str) -> None:
    answer = client.get(path, headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, DATA)


@pytest.mark.parametrize("header", ["bytes=100000-", "bytes=200000-300000", "bytes=-0"])
def test_a_range_outside_the_file(client: httpx.Client, path: str, header: str) -> None:
    answer = client.get(path, headers={"Range": header})
    problem(answer, 416, "range_not_satisfiable")
    assert answer.headers["content-range"] == "bytes */100000"


def test_a_download_goes_on_only_with_the_same_bytes(client: httpx.Client, path: str) -> None:
    same = client.get(path, headers={"Range": "bytes=9-", "If-Range": f'"{SHA}"'})
    other = client.get(path, headers={"Range": "bytes=9-", "If-Range": '"0123"'})
    assert (same.status_code, same.content) == (206, DATA[9:])
    assert (other.status_code, other.content) == (200, DATA)


def test_bytes_that_the_client_has_are_not_sent(client: httpx.Client, path: str) -> None:
    for tag in (f'"{SHA}"', f'W/"{SHA}"', f'"x", "{SHA}"', "*"):
        assert client.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert client.get(path, headers={"If-None-Match": '"x"'}).status_code == 200


def test_head_tells_without_sending(client: httpx.Client, path: str) -> None:
    answer = client.head(path)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == "100000"
    part = client.head(path, headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.headers["content-length"]) == (206, "2")


@pytest.mark.parametrize("direct", ["", "?direct=true", "?direct=false"])
def test_head_is_answered_where_it_is_asked(client: httpx.Client, path: str, direct: str) -> None:
    """A redirect would lead to a URL that is signed for GET alone."""
    answer = client.head(path.replace("?direct=false", direct), follow_redirects=True)
    assert (answer.status_code, answer.history) == (200, [])
    assert answer.headers["content-length"] == "100000"
    assert answer.headers["etag"] == f'"{SHA}"'
    assert answer.headers["accept-ranges"] == "bytes"


def test_an_empty_file(client: httpx.Client) -> None:
    path = f"/v1/artifacts/{put(client, b'', 'empty')}/content?direct=false"
    answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, b"")
    problem(client.get(path, headers={"Range": "bytes=0-"}), 416, "range_not_satisfiable")


def test_a_download_broken_at_any_offset_goes_on(client: httpx.Client, path: str) -> None:
    received = b""
    for stop in range(9_973, 100_000, 9_973):
        headers = {"Range": f"bytes={len(received)}-", "If-Range": f'"{SHA}"'}
        with client.stream("GET", path, headers=headers) as answer:
            for chunk in answer.iter_raw(1000):
                received += chunk
                if len(received) >= stop:
                    break
    if len(received) < len(DATA):
        received += client.get(path, headers={"Range": f"bytes={len(received)}-"}).content
    assert received == DATA


def test_the_object_store_sends_where_it_can(distributed: House) -> None:
    with distributed.client() as client:
        path = f"/v1/artifacts/{put(client, DATA, 'data.bin')}/content"
        answer = client.get(path)
        assert answer.status_code == 307
        location = answer.headers["location"]
        assert location.startswith(distributed.settings.s3_endpoint or "?")
        assert "X-Amz-Expires=900" in location
        assert SHA in answer.headers["etag"]
        assert answer.headers["cache-control"] == "no-store"
        assert httpx.get(location).content == DATA
        part = httpx.get(location, headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, DATA[5:10])
        other_method = httpx.put(location, content=b"x")
        other_key = httpx.get(location.replace(SHA, "0" * 64))
        assert (other_method.status_code, other_key.status_code) == (403, 403)


def test_clients_may_know_the_store_by_another_address(tmp_path: Path, s3: S3Server) -> None:
    public = s3.endpoint.replace("127.0.0.1", "localhost")
    with (
        running(tmp_path, **store_of(s3), s3_public_endpoint=public) as house,
        house.client() as client,
    ):
        begun = client.post("/v1/uploads", json={"filename": "data.bin", "size": len(DATA)}).json()
        part = begun["parts"][0]["url"]
        assert part.startswith(f"{public}/addresses/")
        assert httpx.put(part, content=DATA).status_code == 200
        artifact = client.post(f"/v1/uploads/{begun['id']}/complete").json()
        answer = client.get(artifact["links"]["content"])
        assert answer.headers["location"].startswith(f"{public}/addresses/")
        assert httpx.get(answer.headers["location"]).content == DATA


def test_all_bytes_pass_the_service_where_clients_cannot_reach_the_store(
    tmp_path: Path, s3: S3Server
) -> None:
    switches = {"direct_uploads": False, "direct_downloads": False}
    with running(tmp_path, **store_of(s3), **switches) as house, house.client() as client:
        begun = client.post("/v1/uploads", json={"filename": "data.bin", "size": len(DATA)}).json()
        part = begun["parts"][0]["url"]
        assert part == f"/v1/uploads/{begun['id']}/parts/1"
        assert client.put(part, content=DATA).status_code == 204
        artifact = client.post(f"/v1/uploads/{begun['id']}/complete").json()
        answer = client.get(artifact["links"]["content"])
        assert (answer.status_code, answer.content) == (200, DATA)


def store_of(s3: S3Server) -> dict[str, str]:
    return {
        "store_url": s3.bucket("addresses"),
        "s3_endpoint": s3.endpoint,
        "s3_access_key_id": s3.access_key,
        "s3_secret_access_key": s3.secret_key,
    }


def test_a_local_store_never_redirects(embedded: House) -> None:
    with embedded.client() as client:
        path = f"/v1/artifacts/{put(client, DATA, 'data.bin')}/content?direct=true"
        assert client.get(path).status_code == 200


def test_a_name_cannot_break_the_header(client: httpx.Client) -> None:
    name = 'Gewichte "ä" 100%.bin'
    artifact = client.put(f"/v1/uploads/{name}", content=b"x").json()["id"]
    header = client.get(f"/v1/artifacts/{artifact}/content?direct=false").headers[
        "content-disposition"
    ]
    assert header == (
        'attachment; filename="Gewichte __ 100_.bin"; '.replace("__", "___")
        + "filename*=UTF-8''Gewichte%20%22%C3%A4%22%20100%25.bin"
    )


def test_a_finished_jobs_files_have_paths_of_their_own(client: httpx.Client, house: House) -> None:
    job = submit(client)
    path = f"/v1/jobs/{job['id']}"
    missing = problem(client.get(f"{path}/files/model.safetensors"), 404, "file_not_found")
    assert "wait" in missing["fix"]
    weights = checkpoint(fill=5)
    house.deliver(job["id"], {"model.safetensors": weights, "report.json": b"{}"}, defect=1e-7)

    done = client.get(path).json()
    links = done["links"]["download"]
    assert done["result"]["metrics"] == {"defect": 1e-7}
    assert set(links) == set(done["result"]["files"]) == {"model.safetensors", "report.json"}
    for name, data in (("model.safetensors", weights), ("report.json", b"{}")):
        entry = done["result"]["files"][name]
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
        assert client.get(links[name], follow_redirects=True).content == data
        same = f"/v1/artifacts/{entry['artifact']}/content"
        assert client.get(same, follow_redirects=True).content == data
    other = problem(client.get(f"{path}/files/x"), 404, "file_not_found")
    assert "report.json" in other["fix"]
    listed = client.get("/v1/artifacts", params={"job": job["id"]}).json()["data"]
    assert {artifact["name"] for artifact in listed} == set(links)


def test_lost_bytes_are_the_services_fault(embedded: House) -> None:
    with embedded.client(embedded.new_key("unlucky")) as client:
        artifact = client.put("/v1/uploads/x.txt", content=b"soon lost").json()
        key = embedded.blobs.key("unlucky", artifact["sha256"])
        (Path(embedded.settings.data_dir) / "store" / key).unlink()
        document = problem(client.get(artifact["links"]["content"]), 500, "content_missing")
        assert document["retryable"]


def test_artifacts_are_listed_newest_first_and_deleted(client: httpx.Client) -> None:
    made = [put(client, f"{number}".encode(), "n.txt") for number in range(5)]
    first = client.get("/v1/artifacts", params={"limit": 3}).json()
    rest = client.get("/v1/artifacts", params={"limit": 3, "after": first["next"]}).json()
    assert [a["id"] for a in first["data"] + rest["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"], rest["next"]) == (True, False, None)

    assert client.delete(f"/v1/artifacts/{made[0]}").status_code == 204
    problem(client.get(f"/v1/artifacts/{made[0]}"), 404, "artifact_not_found")
    problem(client.get(f"/v1/artifacts/{made[0]}/content"), 404, "artifact_not_found")
    problem(client.delete(f"/v1/artifacts/{made[0]}"), 404, "artifact_not_found")


def test_an_input_in_use_is_not_deleted(client: httpx.Client) -> None:
    artifact = put(client, checkpoint(fill=6))
    job = submit(client, artifact)
    document = problem(client.delete(f"/v1/artifacts/{artifact}"), 409, "artifact_in_use")
    assert job["id"] in document["fix"]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/artifacts/{artifact}").status_code == 204
