"""Nothing of another tenant can be seen, touched, or told apart from what does not exist."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from house import House, checkpoint, order, put, submit

ROUTES = [
    ("GET", "/v1/jobs/{job}"),
    ("PATCH", "/v1/jobs/{job}"),
    ("POST", "/v1/jobs/{job}/cancel"),
    ("POST", "/v1/jobs/{job}/pause"),
    ("POST", "/v1/jobs/{job}/resume"),
    ("POST", "/v1/jobs/{job}/retry"),
    ("GET", "/v1/jobs/{job}/events"),
    ("GET", "/v1/jobs/{job}/metrics"),
    ("GET", "/v1/jobs/{job}/attempts"),
    ("GET", "/v1/jobs/{job}/checkpoints"),
    ("GET", "/v1/jobs/{job}/files/model.safetensors"),
    ("GET", "/v1/artifacts/{artifact}"),
    ("DELETE", "/v1/artifacts/{artifact}"),
    ("GET", "/v1/artifacts/{artifact}/content"),
    ("GET", "/v1/uploads/{upload}"),
    ("PUT", "/v1/uploads/{upload}/parts/1"),
    ("POST", "/v1/uploads/{upload}/complete"),
    ("DELETE", "/v1/uploads/{upload}"),
    ("DELETE", "/v1/keys/{key}"),
    ("GET", "/v1/batches/{batch}"),
    ("GET", "/v1/batches/{batch}/report"),
    ("POST", "/v1/batches/{batch}/cancel"),
]
STREAM = ("GET", "/v1/jobs/{job}/events", "text/event-stream")


def without_the_id(answer: httpx.Response, found: str) -> str:
    text = answer.text.replace(found, "ID")
    return re.sub(r"req_[0-9A-Z]{26}", "REQ", text)


@pytest.fixture
def theirs(house: House) -> dict[str, str]:
    """One of everything, of another tenant; the job is finished."""
    with house.client(house.new_key("other_people")) as owner:
        artifact = put(owner, checkpoint(fill=9))
        job = submit(owner, artifact)["id"]
        house.deliver(job, {"model.safetensors": checkpoint(fill=8)})
        upload = owner.post("/v1/uploads", json={"filename": "x", "size": 3}).json()["id"]
        key = owner.get("/v1/whoami").json()["key"]["id"]
        batch = owner.post("/v1/batches", json=order(artifact)).json()["id"]
    return {"job": job, "artifact": artifact, "upload": upload, "key": key, "batch": batch}


def test_foreign_ids_answer_as_unknown_ones_do(
    client: httpx.Client, theirs: dict[str, str]
) -> None:
    nothing = {name: value[:-10] + "0" * 10 for name, value in theirs.items()}
    for method, path, *accept in [*ROUTES, STREAM]:
        name = re.findall(r"{(\w+)}", path)[0]
        options: dict[str, Any] = {"headers": {"Accept": accept[0] if accept else "*/*"}}
        if method == "PATCH":
            options["json"] = {"priority": "low"}
            options["headers"]["If-Match"] = "*"
        foreign = client.request(method, path.format(**theirs), **options)
        unknown = client.request(method, path.format(**nothing), **options)
        assert foreign.status_code == unknown.status_code == 404, (method, path)
        same = without_the_id(unknown, nothing[name])
        assert without_the_id(foreign, theirs[name]) == same
        left = {k: v for k, v in foreign.headers.items() if k not in {"date", "x-request-id"}}
        assert left.keys() == unknown.headers.keys() - {"date", "x-request-id"}


def test_a_foreign_input_answers_as_an_unknown_one_does(
    client: httpx.Client, theirs: dict[str, str]
) -> None:
    unknown = theirs["artifact"][:-10] + "0" * 10
    answers = [client.post("/v1/jobs", json=order(i)) for i in (theirs["artifact"], unknown)]
    assert [answer.status_code for answer in answers] == [404, 404]
    texts = [
        without_the_id(a, i) for a, i in zip(answers, (theirs["artifact"], unknown), strict=True)
    ]
    assert texts[0] == texts[1]


def test_listings_show_only_ones_own(client: httpx.Client, theirs: dict[str, str]) -> None:
    for path in ("/v1/jobs", "/v1/artifacts", "/v1/batches", f"/v1/jobs?batch={theirs['batch']}"):
        assert client.get(path).json()["data"] == []
    assert client.get("/v1/jobs", params={"after": theirs["job"]}).json()["data"] == []
    assert client.get("/v1/artifacts", params={"job": theirs["job"]}).json()["data"] == []
    assert len(client.get("/v1/keys").json()["data"]) == 1


def test_idempotency_keys_of_two_tenants_do_not_meet(client: httpx.Client, house: House) -> None:
    headers = {"Idempotency-Key": "shared"}
    mine = client.post("/v1/jobs", json=order(put(client, checkpoint())), headers=headers)
    with house.client(house.new_key("neighbour")) as neighbour:
        body = order(put(neighbour, checkpoint()))
        theirs = neighbour.post("/v1/jobs", json=body, headers=headers)
    assert [mine.status_code, theirs.status_code] == [202, 202]
    assert mine.json()["id"] != theirs.json()["id"]
