from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from house import House, arrays, checkpoint, problem, put

from stiefel_jobs.store import outbox

TRAINING = {
    "method": "train.dlrt",
    "network": {"family": "mlp", "hidden": [32, 32]},
    "epochs": 2,
}


@pytest.fixture
def base(client: httpx.Client) -> dict[str, Any]:
    data = {"kind": "arrays", "train": put(client, arrays(), "d.npz"), "input": "x", "label": "y"}
    return {**TRAINING, "data": data}


def send(client: httpx.Client, body: dict[str, Any], **options: Any) -> dict[str, Any]:
    answer = client.post("/v1/batches", json=body, **options)
    assert answer.status_code == 202, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_grid_becomes_jobs_in_order(
    client: httpx.Client, base: dict[str, Any], house: House
) -> None:
    body = {
        "name": "tau on the digits",
        "spec": base,
        "grid": {"truncation_tolerance": [0.2, 0.1], "network.hidden": [[64], [8, 8]]},
        "labels": {"paper": "dlrt"},
        "priority": "low",
        "max_attempts": 2,
    }
    answer = client.post("/v1/batches", json=body)
    assert answer.status_code == 202, answer.text
    batch = answer.json()
    assert answer.headers["location"] == batch["links"]["self"] == f"/v1/batches/{batch['id']}"
    assert (batch["status"], batch["size"], batch["counts"]) == ("queued", 4, {"queued": 4})
    assert [axis["path"] for axis in batch["axes"]] == ["truncation_tolerance", "network.hidden"]
    assert [job["custom_id"] for job in batch["jobs"]] == [
        "truncation_tolerance=0.2,network.hidden=[64]",
        "truncation_tolerance=0.2,network.hidden=[8,8]",
        "truncation_tolerance=0.1,network.hidden=[64]",
        "truncation_tolerance=0.1,network.hidden=[8,8]",
    ]
    assert batch["jobs"][1]["cell"] == {"truncation_tolerance": 0.2, "network.hidden": [8, 8]}
    job = client.get(batch["jobs"][1]["links"]["self"]).json()
    assert (job["batch"], job["custom_id"]) == (batch["id"], batch["jobs"][1]["custom_id"])
    assert job["spec"]["network"]["hidden"] == [8, 8]
    assert (job["labels"], job["priority"], job["max_attempts"]) == ({"paper": "dlrt"}, "low", 2)
    listed = client.get("/v1/jobs", params={"batch": batch["id"]}).json()["data"]
    assert [job["id"] for job in listed] == [job["job"] for job in reversed(batch["jobs"])]
    for each in batch["jobs"]:
        end = time.monotonic() + 20
        while outbox.unsent(house.db, job_id=each["job"]):
            assert time.monotonic() < end, "the message stayed in the outbox"
            time.sleep(0.05)


def test_jobs_of_other_methods_stand_beside_the_grid(
    client: httpx.Client, base: dict[str, Any]
) -> None:
    dense = {**base, "method": "train.dense"}
    entry = {"custom_id": "dense", "spec": dense, "grid": {"seed": [0, 1]}}
    batch = send(
        client,
        {
            "spec": base,
            "grid": {"truncation_tolerance": [0.1]},
            "jobs": [entry, {"custom_id": "one", "spec": {**dense, "seed": 9}}],
        },
    )
    assert [(job["custom_id"], job["cell"]) for job in batch["jobs"]] == [
        (
            "truncation_tolerance=0.1",
            {"method": "train.dlrt", "truncation_tolerance": 0.1, "seed": 0},
        ),
        ("dense/seed=0", {"method": "train.dense", "seed": 0}),
        ("dense/seed=1", {"method": "train.dense", "seed": 1}),
        ("one", {"method": "train.dense", "seed": 9}),
    ]
    only = send(client, {"jobs": [{"custom_id": "a", "spec": base}]})
    assert [job["custom_id"] for job in only["jobs"]] == ["a"]
    assert [job["custom_id"] for job in send(client, {"spec": base})["jobs"]] == ["spec"]


def test_one_refusal_names_every_fault_and_nothing_is_submitted(
    client: httpx.Client, base: dict[str, Any]
) -> None:
    body = {
        "spec": {**base, "epochs": 0},
        "grid": {"truncation_tolerance": [0.1, 7], "network.hidden": [[8], [8, -1]]},
        "jobs": [
            {"custom_id": "gone", "spec": {**base, "data": {**base["data"], "train": "art_0"}}},
            {"custom_id": "odd", "spec": {"method": "train.odd"}, "grid": {"seed": [0, 1]}},
            {"custom_id": "good", "spec": base},
        ],
    }
    for parameters in ({}, {"dry_run": "true"}):
        answer = client.post("/v1/batches", json=body, params=parameters)
        document = problem(answer, 422, "batch_refused")
        assert document["detail"].startswith("7 of 8 cells are refused")
        faults = {fault["pointer"]: fault for fault in document["errors"]}
        assert set(faults) == {
            "/spec/epochs",
            "/grid/truncation_tolerance/1",
            "/grid/network.hidden/1/1",
            "/jobs/0/spec",
            "/jobs/1/spec/method",
        }
        assert len(faults["/spec/epochs"]["cells"]) == 4
        assert faults["/grid/truncation_tolerance/1"]["cells"] == [
            "truncation_tolerance=7,network.hidden=[8]",
            "truncation_tolerance=7,network.hidden=[8,-1]",
        ]
        assert faults["/jobs/0/spec"]["code"] == "artifact_not_found"
        assert faults["/jobs/1/spec/method"]["cells"] == ["odd/seed=0", "odd/seed=1"]
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.get("/v1/batches").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"grid": {"seed": list(range(257))}}, "too_many_cells", "/grid"),
        ({"grid": {"seed": [1, 2, 1]}}, "invalid_grid", "/grid/seed/2"),
        ({"grid": {"method.name": [1]}}, "invalid_grid", "/grid/method.name"),
        ({"grid": {"network.hidden.9": [1]}}, "invalid_grid", "/grid/network.hidden.9"),
        ({"grid": {"network.hidden.\u00b2": [1]}}, "invalid_grid", "/grid/network.hidden.\u00b2"),
        ({"grid": {"network.hidden.x.0": [1]}}, "invalid_grid", "/grid/network.hidden.x.0"),
        ({"grid": {"seed": []}}, "invalid_request", "/grid/seed"),
        ({"grid": {"a..b": [1]}}, "invalid_request", "/grid/a..b/[key]"),
        ({"grid": {"sede": [1]}}, "batch_refused", "/grid/sede/0"),
        ({"spec": None, "grid": {"seed": [1]}}, "invalid_request", ""),
        ({"spec": None}, "invalid_request", ""),
        ({"jobs": [{"custom_id": "a/b", "spec": {}}]}, "invalid_request", "/jobs/0/custom_id"),
        ({"grid": {"seed": [json.loads("[" * 70 + "]" * 70)]}}, "invalid_request", "/grid/seed"),
        ({"sepc": {}}, "invalid_request", "/sepc"),
        ({"max_attempts": 0}, "invalid_request", "/max_attempts"),
    ],
)
def test_a_faulty_batch_is_refused_by_name_of_the_fault(
    client: httpx.Client, base: dict[str, Any], change: dict[str, Any], code: str, pointer: str
) -> None:
    document = problem(client.post("/v1/batches", json={"spec": base, **change}), 422, code)
    assert document["errors"][0]["pointer"] == pointer
    assert document["fix"]
    assert client.get("/v1/jobs").json()["data"] == []


def test_a_name_stands_for_one_job(client: httpx.Client, base: dict[str, Any]) -> None:
    twice = [{"custom_id": "a", "spec": base}, {"custom_id": "a", "spec": base}]
    document = problem(client.post("/v1/batches", json={"jobs": twice}), 422, "invalid_grid")
    assert document["errors"] == [
        {"pointer": "/jobs/1/custom_id", "message": "the custom id 'a' is given twice"}
    ]


def test_a_dry_run_plans_every_cell(client: httpx.Client) -> None:
    spec = {"method": "project.unitary", "input": put(client, checkpoint())}
    body = {"spec": spec, "grid": {"include": [["a.*"], ["*.weight"]]}}
    answer = client.post("/v1/batches", params={"dry_run": "true"}, json=body)
    assert answer.status_code == 200, answer.text
    plan = answer.json()
    assert (plan["object"], plan["size"]) == ("batch_plan", 2)
    assert [cell["plan"]["selected_count"] for cell in plan["cells"]] == [1, 2]
    assert client.get("/v1/jobs").json()["data"] == []
    body["grid"]["include"].append(["q_proj"])
    document = problem(client.post("/v1/batches", json=body), 422, "batch_refused")
    assert document["errors"][0]["pointer"] == "/grid/include/2/0"
    assert document["errors"][0]["code"] == "pattern_matches_nothing"


def test_the_same_key_gives_the_same_batch(client: httpx.Client, base: dict[str, Any]) -> None:
    body = {"spec": base, "grid": {"seed": [0, 1]}}
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda _: client.post("/v1/batches", json=body, headers={"Idempotency-Key": "k"}),
                range(8),
            )
        )
    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    for path, other in (("/v1/batches", {"spec": base}), ("/v1/jobs", {"spec": base})):
        answer = client.post(path, json=other, headers={"Idempotency-Key": "k"})
        problem(answer, 422, "idempotency_conflict")
    assert len(client.get("/v1/jobs").json()["data"]) == 2


def test_a_repeated_request_finds_its_batch_without_its_data(
    client: httpx.Client, base: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": "k"}
    first = send(client, {"spec": base}, headers=headers)
    client.post(f"{first['links']['self']}/cancel")
    assert client.delete(f"/v1/artifacts/{base['data']['train']}").status_code == 204
    assert send(client, {"spec": base}, headers=headers)["id"] == first["id"]


def test_waiting_ends_when_any_job_changes(
    client: httpx.Client, base: dict[str, Any], house: House
) -> None:
    batch = send(client, {"spec": base, "grid": {"seed": [0, 1, 2]}})
    path = batch["links"]["self"]
    seen = client.get(path).headers["etag"]
    held = client.get(path, params={"wait": 0.3}, headers={"If-None-Match": seen})
    assert held.status_code == 304
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(
            client.get, path, params={"wait": 30}, headers={"If-None-Match": seen}
        )
        time.sleep(0.3)
        began = time.monotonic()
        house.work(batch["jobs"][1]["job"])
        answer = waiting.result(timeout=20)
    assert time.monotonic() - began < 5
    assert answer.json()["counts"] == {"queued": 2, "running": 1}
    assert answer.json()["status"] == "running"
    assert answer.headers["retry-after"]


def test_cancelling_may_be_repeated(
    client: httpx.Client, base: dict[str, Any], house: House
) -> None:
    batch = send(client, {"spec": base, "grid": {"seed": [0, 1, 2]}})
    house.deliver(batch["jobs"][0]["job"], {"report.json": b"{}"})
    for _ in range(2):
        answer = client.post(batch["links"]["cancel"])
        assert answer.status_code == 202
        assert answer.json()["counts"] == {"succeeded": 1, "cancelled": 2}
        assert answer.json()["status"] == "cancelled"
    finished = client.get(batch["links"]["self"], params={"wait": 30})
    assert finished.json()["timestamps"]["finished"]
    assert "retry-after" not in finished.headers


def test_batches_are_listed_newest_first(client: httpx.Client, base: dict[str, Any]) -> None:
    made = [send(client, {"spec": base, "name": f"n{n}"})["id"] for n in range(3)]
    first = client.get("/v1/batches", params={"limit": 2}).json()
    rest = client.get("/v1/batches", params={"limit": 2, "after": first["next"]}).json()
    assert [batch["id"] for batch in first["data"] + rest["data"]] == made[::-1]
    assert (first["has_more"], rest["has_more"]) == (True, False)
    assert first["data"][0]["counts"] == {"queued": 1}


def test_scopes_are_those_of_jobs(client: httpx.Client, house: House, tenant: str) -> None:
    with house.client(house.new_key(tenant, "jobs:read")) as reader:
        problem(reader.post("/v1/batches", json={"spec": {}}), 403, "scope_missing")
        problem(reader.post("/v1/batches/batch_0/cancel"), 403, "scope_missing")
        assert reader.get("/v1/batches").status_code == 200
    with house.client(house.new_key(tenant, "artifacts:read")) as other:
        for path in ("", "/batch_0", "/batch_0/report"):
            problem(other.get(f"/v1/batches{path}"), 403, "scope_missing")
