from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
from house import House, checkpoint, problem, submit

from stiefel_jobs.records import NewEvent, Point, Segment, StateFile
from stiefel_jobs.states import State
from stiefel_jobs.store import progress
from stiefel_jobs.store.finish import release

STREAM = {"Accept": "text/event-stream"}


def frames(answer: httpx.Response) -> Iterator[dict[str, str]]:
    """Read a stream of events as a browser would."""
    fields: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield fields
            fields = {}


def tell(house: House, held: Any, *texts: str) -> None:
    events = [NewEvent("job.log", {"text": text}) for text in texts]
    progress.record(house.db, job_id=held.job_id, fence=held.fence, events=events)


def test_events_are_paged_without_a_gap(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    tell(house, held, *"abcdefg")
    seen: list[dict[str, Any]] = []
    cursor: str | None = "0"
    while cursor is not None:
        page = client.get(f"{job['links']['events']}", params={"after": cursor, "limit": 4}).json()
        seen += page["data"]
        cursor = page["next"]
        assert page["has_more"] == (cursor is not None)
    assert [event["seq"] for event in seen] == list(range(1, 10))
    assert [event["data"].get("text") for event in seen[2:]] == list("abcdefg")
    assert all(event["at"] for event in seen)


def test_a_stream_follows_a_job_to_its_end(client: httpx.Client, house: House) -> None:
    job = submit(client)

    def work() -> None:
        time.sleep(0.3)
        house.deliver(job["id"], {"model.safetensors": checkpoint()})

    worker = threading.Thread(target=work)
    worker.start()
    with client.stream("GET", job["links"]["events"], headers=STREAM) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = [frame for frame in frames(answer) if "data" in frame]
    worker.join()

    assert [int(frame["id"]) for frame in found] == list(range(1, len(found) + 1))
    told = [json.loads(frame["data"]) for frame in found if frame["event"] == "job.status"]
    states = [data["state"] for data in told]
    assert states == ["queued", "running", "finalizing", "succeeded"]


def test_a_stream_goes_on_where_it_broke_off(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    tell(house, held, "x", "y")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    release(house.db, job_id=job["id"], fence=held.fence, to=State.CANCELLED, reason="cancelled")
    with client.stream("GET", job["links"]["events"], headers=STREAM) as answer:
        whole = [frame for frame in frames(answer) if "data" in frame]
    for header in ("2", "4"):
        again = STREAM | {"Last-Event-ID": header}
        with client.stream("GET", job["links"]["events"], headers=again) as answer:
            rest = [frame for frame in frames(answer) if "data" in frame]
        assert rest == whole[int(header) :]
    odd = STREAM | {"Last-Event-ID": "x" * 50}
    with client.stream("GET", job["links"]["events"], headers=odd) as answer:
        assert [frame for frame in frames(answer) if "data" in frame] == whole


def test_a_stream_of_an_unknown_job_is_a_problem(client: httpx.Client) -> None:
    problem(client.get("/v1/jobs/job_0/events", headers=STREAM), 404, "not_found")


def test_metrics_are_paged_and_chosen(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    points = [Point(name, step, step / 10) for step in range(5) for name in ("loss", "lr")]
    points.append(Point("loss", 9, float("nan")))
    progress.record(house.db, job_id=job["id"], fence=held.fence, metrics=points)
    path = job["links"]["metrics"]

    first = client.get(path, params={"limit": 3}).json()
    rest = client.get(path, params={"after": first["next"]}).json()
    seen = [(point["step"], point["name"]) for point in first["data"] + rest["data"]]
    assert seen == sorted((point.step, point.name) for point in points)
    one = client.get(path, params={"name": "loss"}).json()["data"]
    assert [point["value"] for point in one] == [0.0, 0.1, 0.2, 0.3, 0.4, None]
    problem(client.get(path, params={"after": "x"}), 422, "invalid_request")


def test_checkpoints_are_listed(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    blob = house.blobs.put_stream(held.tenant, [b"state"])
    files = [StateFile("body.bin", 5, [Segment(blob.sha256, 5)])]
    progress.checkpoint(house.db, job_id=job["id"], fence=held.fence, step=3, files=files)
    found = client.get(job["links"]["checkpoints"]).json()["data"]
    assert [(item["number"], item["step"], item["bytes"]) for item in found] == [(1, 3, 5)]
