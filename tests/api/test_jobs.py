from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from house import House, checkpoint, order, problem, put, submit

from stiefel_jobs.records import Progress
from stiefel_jobs.states import Blame
from stiefel_jobs.store import finish, outbox, progress


def test_a_job_is_accepted_and_committed(client: httpx.Client, house: House) -> None:
    body = order(
        put(client, checkpoint()),
        labels={"team": "nlp"},
        priority="high",
        deadline="PT2H",
        output_ttl="P1D",
        max_attempts=5,
    )
    answer = client.post("/v1/jobs", json=body)

    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["etag"] == '"1"'
    assert job["status"] == "queued"
    assert job["allowed_actions"] == ["cancel", "pause"]
    assert (job["method"], job["priority"], job["labels"]) == (
        "project.unitary",
        "high",
        {"team": "nlp"},
    )
    assert job["spec"]["seed"] == 0, "the spec in force, defaults filled in"
    assert job["timestamps"]["deadline"] > job["timestamps"]["created"]
    assert client.get(answer.headers["location"]).json()["id"] == job["id"]
    assert house.work(job["id"]).output_ttl_s == 86400


def test_the_doorbell_is_rung_at_once(client: httpx.Client, house: House) -> None:
    job = submit(client)
    end = time.monotonic() + 20
    while outbox.unsent(house.db, job_id=job["id"]):
        assert time.monotonic() < end, "the message stayed in the outbox"
        time.sleep(0.05)


def test_a_dry_run_plans_and_makes_nothing(client: httpx.Client) -> None:
    body = order(put(client, checkpoint()), include=["a.*"])
    answer = client.post("/v1/jobs", params={"dry_run": "true"}, json=body)

    assert answer.status_code == 200
    plan = answer.json()
    assert plan["object"] == "plan"
    assert [tensor["name"] for tensor in plan["tensors_selected"]] == ["a.weight"]
    assert {t["name"]: t["code"] for t in plan["tensors_skipped"]} == {
        "a.bias": "not_a_matrix",
        "b.weight": "not_included",
    }
    assert plan["output_bytes"] > 0
    assert plan["peak_memory_bytes"] > 0
    assert client.get("/v1/jobs").json()["data"] == []


@pytest.mark.parametrize(
    ("change", "code", "pointer"),
    [
        ({"include": ["*.weight", "q_proj"]}, "pattern_matches_nothing", "/spec/include/1"),
        ({"exclude": ["nothing"]}, "pattern_matches_nothing", "/spec/exclude/0"),
        ({"include": ["a.bias"]}, "nothing_selected", "/spec/include"),
        ({"method": "project.nothing"}, "unknown_method", "/spec/method"),
        ({"method": None}, "method_missing", "/spec/method"),
        ({"sede": 1}, "invalid_spec", "/spec/sede"),
        ({"seed": -1}, "invalid_spec", "/spec/seed"),
        ({"include": []}, "invalid_spec", "/spec/include"),
        ({"input": "../../etc/passwd"}, "invalid_spec", "/spec/input"),
    ],
)
def test_a_faulty_spec_names_the_field(
    embedded: House, change: dict[str, Any], code: str, pointer: str
) -> None:
    with embedded.client() as client:
        body = order(put(client, checkpoint()), **change)
        for params in ({}, {"dry_run": "true"}):
            document = problem(client.post("/v1/jobs", json=body, params=params), 422, code)
            assert pointer in [fault["pointer"] for fault in document["errors"]]
            assert document["fix"]


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"priority": "urgent"}, "/priority"),
        ({"deadline": "soon"}, "/deadline"),
        ({"deadline": "PT0S"}, "/deadline"),
        ({"output_ttl": "P9999D"}, "/output_ttl"),
        ({"max_attempts": 0}, "/max_attempts"),
        ({"labels": {"k": ""}}, "/labels/k"),
        ({"labels": {f"k{n}": "v" for n in range(33)}}, "/labels"),
        ({"device": "tpu"}, "/device"),
        ({"colour": "red"}, "/colour"),
    ],
)
def test_a_faulty_request_names_the_field(
    embedded: House, change: dict[str, Any], pointer: str
) -> None:
    with embedded.client() as client:
        answer = client.post("/v1/jobs", json=order("art_1") | change)
        document = problem(answer, 422, "invalid_request")
        assert pointer in [fault["pointer"] for fault in document["errors"]]


def test_an_input_that_is_no_checkpoint(client: httpx.Client) -> None:
    artifact = put(client, b'{"a": 1}', "data.json")
    document = problem(client.post("/v1/jobs", json=order(artifact)), 422, "json_file")
    assert document["errors"][0]["pointer"] == "/spec/input"


def test_an_unknown_input(client: httpx.Client) -> None:
    document = problem(client.post("/v1/jobs", json=order("art_0")), 404, "artifact_not_found")
    assert document["errors"][0]["pointer"] == "/spec/input"
    assert "PUT /v1/uploads" in document["fix"]


def test_shards_and_their_index(client: httpx.Client) -> None:
    shards = {
        "model-1.safetensors": put(client, checkpoint({"a.weight": [4, 4]}), "model-1.safetensors"),
        "model-2.safetensors": put(client, checkpoint({"b.weight": [4, 4]}), "model-2.safetensors"),
    }
    name = "model.safetensors.index.json"
    good = b'{"weight_map": {"a.weight": "model-1.safetensors", "b.weight": "model-2.safetensors"}}'
    bad = good.replace(b"model-2", b"model-1")
    for index, status in ((good, 202), (bad, 422)):
        inputs = {**shards, name: put(client, index, name)}
        assert client.post("/v1/jobs", json=order(inputs)).status_code == status  # type: ignore[arg-type]


def test_a_repeated_request_gives_the_same_job(client: httpx.Client) -> None:
    body = order(put(client, checkpoint()))
    headers = {"Idempotency-Key": "once"}
    first = client.post("/v1/jobs", json=body, headers=headers)
    again = client.post("/v1/jobs", json=body, headers=headers)

    assert [first.status_code, again.status_code] == [202, 202]
    assert again.json()["id"] == first.json()["id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    other = client.post("/v1/jobs", json=body | {"priority": "low"}, headers=headers)
    problem(other, 422, "idempotency_conflict")
    fresh = client.post("/v1/jobs", json=body, headers={"Idempotency-Key": "twice"})
    assert fresh.json()["id"] != first.json()["id"]


def test_a_repeated_request_is_answered_although_its_input_is_gone(client: httpx.Client) -> None:
    artifact = put(client, checkpoint())
    headers = {"Idempotency-Key": "late"}
    first = client.post("/v1/jobs", json=order(artifact), headers=headers).json()
    client.post(f"/v1/jobs/{first['id']}/cancel")
    client.delete(f"/v1/artifacts/{artifact}")
    again = client.post("/v1/jobs", json=order(artifact), headers=headers)
    assert (again.status_code, again.json()["id"]) == (202, first["id"])
    assert again.json()["status"] == "cancelled"


def test_a_hundred_at_once_make_one_job(client: httpx.Client, house: House) -> None:
    body = order(put(client, checkpoint()))
    limits = httpx.Limits(max_connections=100)
    key = client.headers["authorization"].removeprefix("Bearer ")
    with house.client(key, limits=limits) as crowd, ThreadPoolExecutor(100) as pool:
        headers = {"Idempotency-Key": "race"}
        sent = [pool.submit(crowd.post, "/v1/jobs", json=body, headers=headers) for _ in range(100)]
        answers = [future.result() for future in sent]

    assert {answer.status_code for answer in answers} == {202}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert sum("idempotency-replayed" not in answer.headers for answer in answers) == 1
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_prefer_wait_holds_the_answer_until_the_end(client: httpx.Client, house: House) -> None:
    artifact = put(client, checkpoint())

    def finish_soon() -> None:
        while not (jobs := client.get("/v1/jobs").json()["data"]):
            time.sleep(0.05)
        house.deliver(jobs[0]["id"], {"model.safetensors": checkpoint(fill=7)})

    worker = threading.Thread(target=finish_soon)
    worker.start()
    answer = client.post("/v1/jobs", json=order(artifact), headers={"Prefer": "wait=30"})
    worker.join()

    assert (answer.status_code, answer.json()["status"]) == (202, "succeeded")
    assert answer.headers["preference-applied"] == "wait=30"
    assert "retry-after" not in answer.headers
    short = client.post("/v1/jobs", json=order(artifact), headers={"Prefer": "wait=1"})
    assert short.json()["status"] == "queued"


def test_versions_and_long_polls(client: httpx.Client, house: House) -> None:
    path = f"/v1/jobs/{submit(client)['id']}"
    first = client.get(path)
    seen = {"If-None-Match": first.headers["etag"]}
    assert client.get(path, headers=seen).status_code == 304
    began = time.monotonic()
    assert client.get(path, headers=seen, params={"wait": 0.5}).status_code == 304
    assert time.monotonic() - began >= 0.5

    with ThreadPoolExecutor(1) as pool:
        poll = pool.submit(client.get, path, headers=seen, params={"wait": 30})
        time.sleep(0.5)
        assert not poll.done()
        house.work(path.rsplit("/", 1)[1])
        changed = poll.result(timeout=5)
    assert (changed.status_code, changed.json()["status"]) == (200, "running")
    # A version from before the wait began is answered at once.
    assert client.get(path, headers=seen, params={"wait": 30}).status_code == 200


def test_a_running_job_shows_progress_and_an_estimate(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    fenced: dict[str, Any] = {"job_id": job["id"], "fence": held.fence}
    for done in (1, 41):
        time.sleep(0.05)
        report = Progress("converting", done, 100, "tensor", {"bytes_done": done * 10})
        progress.record(house.db, **fenced, progress=report)

    seen = client.get(f"/v1/jobs/{job['id']}").json()

    assert (seen["attempt"], seen["queue"]["position"]) == (1, None)
    assert seen["progress"]["percent"] == 41.0
    assert (seen["progress"]["unit"], seen["progress"]["stage"]) == ("tensor", "converting")
    assert seen["progress"]["bytes_done"] == 410
    assert seen["progress"]["eta"] > seen["timestamps"]["started"]


def test_no_estimate_goes_beyond_reason(client: httpx.Client, house: House) -> None:
    """4.5e12 steps at a few per second end after the calendar does."""
    job = submit(client)
    fenced: dict[str, Any] = {"job_id": job["id"], "fence": house.work(job["id"]).fence}
    for done in (1, 2):
        time.sleep(0.05)
        rates = {"rate": 5.0, "rate_low": 1e-300, "rate_high": 9.0}
        report = Progress("training", done, 4.5e12, "step", rates)
        progress.record(house.db, **fenced, progress=report)

    for seen in (
        client.get(f"/v1/jobs/{job['id']}").json(),
        *client.get("/v1/jobs").json()["data"],
    ):
        estimates = [seen["progress"][name] for name in ("eta", "eta_earliest", "eta_latest")]
        assert (seen["progress"]["done"], estimates) == (2, [None, None, None])


def test_a_failed_job_says_why_and_whose_fault_it_is(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    error = {"code": "non_finite_weights", "detail": "tensor 'a' holds NaN", "tensor": "a"}
    finish.fail(
        house.db,
        job_id=job["id"],
        fence=held.fence,
        reason="error",
        blame=Blame.USER,
        error=error,
        retry=False,
    )
    seen = client.get(f"/v1/jobs/{job['id']}").json()
    assert (seen["status"], seen["allowed_actions"]) == ("failed", ["retry"])
    assert seen["error"] | error == seen["error"]
    assert seen["error"]["blame"] == "user"
    attempts = client.get(f"/v1/jobs/{job['id']}/attempts").json()["data"]
    assert [(a["number"], a["worker"], a["blame"]) for a in attempts] == [(1, "w", "user")]
    assert client.post(f"/v1/jobs/{job['id']}/retry").json()["status"] == "queued"


def test_every_action_and_its_conflicts(client: httpx.Client, house: House) -> None:
    path = f"/v1/jobs/{submit(client)['id']}"

    def act(verb: str) -> httpx.Response:
        return client.post(f"{path}/{verb}")

    def after(verb: str) -> str:
        answer = act(verb)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["status"])

    assert [after("pause"), after("pause")] == ["paused", "paused"]
    assert problem(act("retry"), 409, "action_not_allowed")["allowed_actions"] == [
        "cancel",
        "resume",
    ]
    assert [after("resume"), after("resume")] == ["queued", "queued"]
    assert [after("cancel"), after("cancel")] == ["cancelled", "cancelled"]
    assert problem(act("pause"), 409, "action_not_allowed")["allowed_actions"] == ["retry"]
    assert after("retry") == "queued"
    house.deliver(path.rsplit("/", 1)[1], {"model.safetensors": checkpoint()})
    document = problem(act("cancel"), 409, "action_not_allowed")
    assert "allowed_actions" not in document
    problem(client.post(f"{path}/explode"), 404, "route_not_found")


def test_jobs_are_listed_by_page_status_and_label(client: httpx.Client) -> None:
    artifact = put(client, checkpoint())
    ids = [
        submit(client, artifact, labels={"team": "ab"[n % 2], "n": str(n)})["id"] for n in range(5)
    ]
    client.post(f"/v1/jobs/{ids[0]}/cancel")

    def listed(**params: Any) -> list[str]:
        return [job["id"] for job in client.get("/v1/jobs", params=params).json()["data"]]

    assert listed() == ids[::-1]
    assert listed(status=["cancelled"]) == ids[:1]
    assert listed(status=["queued", "cancelled"]) == ids[::-1]
    assert listed(label="team:a") == [ids[4], ids[2], ids[0]]
    assert listed(label=["team:a", "n=2"]) == [ids[2]]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    assert first["has_more"]
    assert listed(limit=500, after=first["next"]) == ids[2::-1]
    problem(client.get("/v1/jobs", params={"label": "team"}), 422, "label_malformed")
    problem(client.get("/v1/jobs", params={"status": "lost"}), 422, "invalid_request")
    problem(client.get("/v1/jobs", params={"limit": 501}), 422, "invalid_request")
    problem(client.get("/v1/jobs", params={"after": "'; --"}), 422, "invalid_request")


@pytest.mark.parametrize("label", ["image=repo:tag", "image:repo:tag", "url=a=b:c", "url:a=b:c"])
def test_the_first_separator_ends_the_name_of_a_label(client: httpx.Client, label: str) -> None:
    labels = {"image": "repo:tag", "url": "a=b:c"}
    job = submit(client, labels=labels)
    submit(client, labels={"image": "repo"})
    found = client.get("/v1/jobs", params={"label": label}).json()["data"]
    assert [each["id"] for each in found] == [job["id"]]


def test_labels_and_priority_change_under_a_version(client: httpx.Client) -> None:
    path = f"/v1/jobs/{submit(client, labels={'team': 'nlp'})['id']}"
    problem(client.patch(path, json={"priority": "high"}), 428, "if_match_missing")
    tag = {"If-Match": client.get(path).headers["etag"]}
    changed = client.patch(path, json={"priority": "high", "labels": {"a": "b"}}, headers=tag)

    assert changed.status_code == 200
    assert (changed.json()["priority"], changed.json()["labels"]) == ("high", {"a": "b"})
    problem(client.patch(path, json={"priority": "low"}, headers=tag), 412, "version_mismatch")
    problem(client.patch(path, json={"spec": {}}, headers=tag), 422, "invalid_request")
    assert client.patch(path, json={}, headers={"If-Match": "*"}).status_code == 200
    assert [j["labels"] for j in client.get("/v1/jobs?label=a:b").json()["data"]] == [{"a": "b"}]
    assert client.get("/v1/jobs?label=team:nlp").json()["data"] == []
    types = [event["type"] for event in client.get(f"{path}/events").json()["data"]]
    assert types == ["job.status", "job.amended"]


def test_a_cuda_job_goes_to_its_own_queue(client: httpx.Client) -> None:
    assert submit(client, device="cuda")["queue"]["name"] == "cuda"
    assert submit(client)["queue"]["name"] == "cpu"
