from __future__ import annotations

import base64
import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from house import House, checkpoint, problem, put, running, submit
from sqlalchemy import update

from stiefel_jobs.tables import uploads

PART = 5 * 2**20


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_header(data: bytes) -> dict[str, str]:
    encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return {"Repr-Digest": f"sha-256=:{encoded}:"}


def begin(client: httpx.Client, data: bytes, name: str = "data.bin", **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/uploads", json={"filename": name, "size": len(data), **more})
    assert answer.status_code == 201, answer.text
    body: dict[str, Any] = answer.json()
    return body


def send_part(client: httpx.Client, upload: dict[str, Any], data: bytes, number: int) -> int:
    """Send a part where the service says, as a client of either store would."""
    url = upload["parts"][number - 1]["url"]
    piece = data[(number - 1) * upload["part_size"] : number * upload["part_size"]]
    if url.startswith("http"):
        return httpx.put(url, content=piece, timeout=60).status_code
    return client.put(url, content=piece).status_code


def test_one_request_makes_an_artifact(client: httpx.Client, house: House, tenant: str) -> None:
    data = checkpoint()
    answer = client.put("/v1/uploads/my%20model.safetensors", content=data)

    assert answer.status_code == 201
    artifact = answer.json()
    assert answer.headers["location"] == f"/v1/artifacts/{artifact['id']}"
    assert artifact["name"] == "my model.safetensors"
    assert artifact["kind"] == "safetensors"
    assert (artifact["bytes"], artifact["sha256"]) == (len(data), sha(data))
    assert artifact["meta"] == {"tensors": 3, "parameters": 52, "dtypes": ["F32"]}
    assert artifact["expires_at"] > artifact["created_at"]
    assert client.get(answer.headers["location"]).json() == artifact
    assert house.staged() == []
    assert len(house.stored(tenant)) == 1


def test_the_same_bytes_are_the_same_artifact_within_a_tenant(
    client: httpx.Client, house: House
) -> None:
    data = checkpoint(fill=1)
    first = client.put("/v1/uploads/a.safetensors", content=data)
    again = client.put("/v1/uploads/a.safetensors", content=data)
    other_name = client.put("/v1/uploads/b.safetensors", content=data)
    with house.client(house.new_key("somebody")) as somebody:
        foreign = somebody.put("/v1/uploads/a.safetensors", content=data)

    assert [first.status_code, again.status_code] == [201, 200]
    assert again.json()["id"] == first.json()["id"]
    assert other_name.status_code == foreign.status_code == 201
    assert other_name.json()["sha256"] == first.json()["sha256"]


def test_a_chunked_body_without_a_length_is_taken(client: httpx.Client) -> None:
    data = os.urandom(3_000_000)
    pieces = (data[start : start + 100_000] for start in range(0, len(data), 100_000))
    answer = client.put("/v1/uploads/data.bin", content=pieces)
    assert answer.json()["sha256"] == sha(data)


def test_a_promised_digest_is_checked(client: httpx.Client, house: House, tenant: str) -> None:
    data = checkpoint(fill=2)
    good = client.put("/v1/uploads/a.safetensors", content=data, headers=digest_header(data))
    bad = client.put("/v1/uploads/b.safetensors", content=data, headers=digest_header(b"other"))
    odd = client.put("/v1/uploads/c.safetensors", content=data, headers={"Repr-Digest": "md5=x"})

    assert good.status_code == 201
    assert sha(b"other") in problem(bad, 422, "digest_mismatch")["detail"]
    problem(odd, 400, "digest_malformed")
    assert len(house.stored(tenant)) == 1


@pytest.mark.parametrize("name", ["..%2Fx.safetensors", "a%2Fb", "a%5Cb", "a%00b", "a%0Ab"])
def test_a_name_is_no_path(client: httpx.Client, name: str) -> None:
    answer = client.put(f"/v1/uploads/{name}", content=b"x")
    assert answer.status_code in {404, 422}
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("known", [True, False])
def test_parts_may_come_in_any_order_and_after_a_break(
    client: httpx.Client, house: House, known: bool
) -> None:
    data = os.urandom(2 * PART + 12_345)
    upload = begin(client, data, **({"sha256": sha(data)} if known else {}))
    assert upload["part_size"] == PART
    assert [part["bytes"] for part in upload["parts"]] == [PART, PART, 12_345]
    assert send_part(client, upload, data, 3) in {200, 204}

    early = problem(client.post(f"/v1/uploads/{upload['id']}/complete"), 409, "parts_missing")
    assert early["missing_parts"] == [1, 2]
    seen = client.get(f"/v1/uploads/{upload['id']}").json()
    assert [part["received"] for part in seen["parts"]] == [False, False, True]
    for number in (2, 1):
        assert send_part(client, seen, data, number) in {200, 204}
    answer = client.post(f"/v1/uploads/{upload['id']}/complete")

    assert answer.status_code == 201
    artifact = answer.json()
    assert (artifact["bytes"], artifact["sha256"]) == (len(data), sha(data))
    assert client.post(f"/v1/uploads/{upload['id']}/complete").json() == artifact
    done = client.get(f"/v1/uploads/{upload['id']}").json()
    assert (done["status"], done["artifact"]["id"]) == ("completed", artifact["id"])
    assert client.get(artifact["links"]["content"], follow_redirects=True).content == data
    assert house.staged() == []


def test_bytes_that_are_owned_already_are_not_sent_again(client: httpx.Client) -> None:
    data = checkpoint(fill=3)
    artifact = put(client, data)
    body = {"filename": "model.safetensors", "size": len(data), "sha256": sha(data)}

    answer = client.post("/v1/uploads", json=body)

    assert (answer.status_code, answer.json()["id"]) == (200, artifact)


@pytest.mark.parametrize("whole", [True, False])
def test_bytes_that_are_owned_already_live_as_long_as_fresh_ones(
    client: httpx.Client, house: House, whole: bool
) -> None:
    """A job's output that lives for seconds, sent back as the input of another job."""
    job = submit(client, output_ttl="PT8S")
    data = checkpoint(fill=9)
    house.deliver(job["id"], {"model.safetensors": data})
    files = client.get(f"/v1/jobs/{job['id']}").json()["result"]["files"]
    output = client.get(f"/v1/artifacts/{files['model.safetensors']['artifact']}").json()
    assert remaining(output) < 10

    if whole:
        answer = client.put("/v1/uploads/model.safetensors", content=data)
    else:
        body = {"filename": "model.safetensors", "size": len(data), "sha256": sha(data)}
        answer = client.post("/v1/uploads", json=body)

    assert (answer.status_code, answer.json()["id"]) == (200, output["id"])
    assert remaining(answer.json()) > 29 * 86400
    assert client.get(f"/v1/artifacts/{output['id']}").json() == answer.json()


def remaining(artifact: dict[str, Any]) -> float:
    """Return for how many seconds an artifact lives, counted from now."""
    return (datetime.fromisoformat(artifact["expires_at"]) - datetime.now(UTC)).total_seconds()


def test_another_tenants_bytes_are_not_given_away(client: httpx.Client, house: House) -> None:
    data = checkpoint(fill=4)
    with house.client(house.new_key("owner")) as owner:
        put(owner, data)
    body = {"filename": "model.safetensors", "size": len(data), "sha256": sha(data)}
    assert client.post("/v1/uploads", json=body).status_code == 201


def test_other_bytes_than_promised_are_dropped(
    client: httpx.Client, house: House, tenant: str
) -> None:
    data = os.urandom(1000)
    upload = begin(client, data, sha256=sha(b"something else"))
    send_part(client, upload, data, 1)

    problem(client.post(f"/v1/uploads/{upload['id']}/complete"), 422, "digest_mismatch")

    assert house.stored(tenant) == []
    assert house.staged() == []
    problem(client.post(f"/v1/uploads/{upload['id']}/complete"), 410, "upload_aborted")


def test_a_bad_header_is_found_when_parts_are_put_together(
    client: httpx.Client, house: House, tenant: str
) -> None:
    data = b"\x80\x02}q\x00."  # as pickle begins
    upload = begin(client, data, "model.safetensors")
    send_part(client, upload, data, 1)
    problem(client.post(f"/v1/uploads/{upload['id']}/complete"), 422, "pickle_file")
    assert (house.stored(tenant), house.staged()) == ([], [])


def test_a_header_may_span_parts(client: httpx.Client) -> None:
    names = {f"layer.{number}.{'x' * 400}.weight": [1] for number in range(12_000)}
    data = checkpoint(names)
    assert int.from_bytes(data[:8], "little") > PART
    upload = begin(client, data, "model.safetensors")
    for part in upload["parts"]:
        send_part(client, upload, data, part["number"])
    answer = client.post(f"/v1/uploads/{upload['id']}/complete")
    assert (answer.status_code, answer.json()["meta"]["tensors"]) == (201, 12_000)


def test_parts_of_the_wrong_length_do_not_count(embedded: House) -> None:
    with embedded.client() as client:
        upload = begin(client, bytes(100))
        path = f"/v1/uploads/{upload['id']}/parts"
        problem(client.put(f"{path}/1", content=bytes(99)), 422, "part_length")
        problem(client.put(f"{path}/1", content=bytes(101)), 422, "part_length")
        problem(client.put(f"{path}/2", content=bytes(1)), 404, "part_unknown")
        problem(client.put(f"{path}/0", content=bytes(1)), 422, "invalid_request")
        assert not client.get(f"/v1/uploads/{upload['id']}").json()["parts"][0]["received"]
        assert client.put(f"{path}/1", content=bytes(100)).status_code == 204
        assert client.post(f"/v1/uploads/{upload['id']}/complete").status_code == 201
        problem(client.put(f"{path}/1", content=bytes(100)), 409, "upload_completed")


def test_an_upload_may_be_given_up(client: httpx.Client, house: House) -> None:
    upload = begin(client, b"12345")
    send_part(client, upload, b"12345", 1)
    path = f"/v1/uploads/{upload['id']}"
    assert [client.delete(path).status_code for _ in range(2)] == [204, 204]
    assert house.staged() == []
    assert client.get(path).json()["status"] == "aborted"


def test_an_expired_upload_says_so(client: httpx.Client, house: House) -> None:
    upload = begin(client, b"12345")
    with house.db.write() as connection:
        connection.execute(
            update(uploads).where(uploads.c.id == upload["id"]).values(expires_at=1.0)
        )
    path = f"/v1/uploads/{upload['id']}"
    for answer in (client.get(path), client.post(f"{path}/complete")):
        assert "POST /v1/uploads" in problem(answer, 410, "upload_expired")["fix"]


def test_a_client_that_goes_away_leaves_nothing(client: httpx.Client, house: House) -> None:
    def broken() -> Any:
        yield bytes(2**20)
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        client.put("/v1/uploads/data.bin", content=broken())
    assert client.get("/v1/artifacts").json()["data"] == []
    assert house.staged() == []


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"filename": "x", "size": -1}, "/size"),
        ({"filename": "a/b", "size": 1}, "/filename"),
        ({"filename": "", "size": 1}, "/filename"),
        ({"filename": "x"}, "/size"),
        ({"filename": "x", "size": 1, "sha256": "ABC"}, "/sha256"),
        ({"filename": "x", "size": 1, "parts": 3}, "/parts"),
    ],
)
def test_faulty_announcements_name_the_field(
    embedded: House, body: dict[str, Any], pointer: str
) -> None:
    with embedded.client() as client:
        document = problem(client.post("/v1/uploads", json=body), 422, "invalid_request")
    assert pointer in [fault["pointer"] for fault in document["errors"]]


def test_sizes_have_a_limit(tmp_path: Path) -> None:
    with (
        running(tmp_path, max_upload_bytes=1000, max_stored_bytes=1500) as house,
        house.client() as client,
    ):
        problem(client.put("/v1/uploads/x.txt", content=bytes(1001)), 413, "file_too_large")
        chunked = client.put("/v1/uploads/x.txt", content=iter([bytes(600), bytes(600)]))
        problem(chunked, 413, "file_too_large")
        body = {"filename": "x", "size": 1001}
        problem(client.post("/v1/uploads", json=body), 413, "file_too_large")
        assert client.put("/v1/uploads/x.txt", content=b"a" * 1000).status_code == 201
        full = problem(client.put("/v1/uploads/y.txt", content=b"b" * 1000), 413, "storage_full")
        assert "Delete" in full["fix"]
        assert house.staged() == []
