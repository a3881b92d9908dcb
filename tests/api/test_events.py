from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx
import pytest
from house import House, checkpoint, problem, submit

from stiefel_api import streaming
from stiefel_api.security import Caller
from stiefel_api.service import Service
from stiefel_jobs.records import NewEvent, Point, Progress, Segment, StateFile
from stiefel_jobs.states import State
from stiefel_jobs.store import keys, progress, queries
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


@pytest.mark.parametrize("busy", [True, False])
def test_a_stream_ends_soon_after_its_key_is_revoked(
    house: House, tenant: str, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_S", 0.3)
    secret = house.new_key(tenant)
    with house.client(secret) as client:
        job = submit(client)
    held = house.work(job["id"])
    key = keys.authenticate(house.db, secret)
    assert key is not None
    record = queries.get_job(house.db, tenant=tenant, job_id=job["id"])
    caller = Caller(tenant, key.scopes, key)

    async def scene() -> list[str]:
        service = Service.of(house.settings)
        got = []
        try:
            async with asyncio.timeout(20):
                begun = time.monotonic()
                async for text in streaming.stream_events(service, caller, record, 0):
                    got.append(text)
                    if busy:
                        await asyncio.to_thread(tell, house, held, "x")
                    if time.monotonic() - begun > 0.7:
                        keys.revoke_key(house.db, tenant=tenant, key_id=key.id)
        finally:
            await service.waiters.close()
            service.db.close()
        return got

    found = asyncio.run(scene())
    assert (": still here\n\n" in found) != busy


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


def test_points_stream_as_they_are_reported_and_after_a_break(
    client: httpx.Client, house: House
) -> None:
    job = submit(client)
    held = house.work(job["id"])
    path = job["links"]["metrics"]

    def report(*points: Point) -> None:
        progress.record(house.db, job_id=job["id"], fence=held.fence, metrics=points)

    def follow(headers: dict[str, str], **params: str) -> list[dict[str, str]]:
        with client.stream("GET", path, headers=STREAM | headers, params=params) as answer:
            return [frame for frame in frames(answer) if "data" in frame]

    def work() -> None:
        time.sleep(0.2)
        report(Point("loss", 1, 0.5), Point("loss", 2, float("nan")))
        time.sleep(0.2)
        report(Point("defect", 2, 0.1))  # of an earlier place, later told
        client.post(f"/v1/jobs/{job['id']}/cancel")
        release(house.db, job_id=job["id"], fence=held.fence, to=State.CANCELLED, reason="done")

    worker = threading.Thread(target=work)
    worker.start()
    whole = follow({})
    worker.join()
    assert {frame["event"] for frame in whole} == {"job.metric"}
    told = [json.loads(frame["data"]) for frame in whole]
    assert [(point["name"], point["step"], point["value"]) for point in told] == [
        ("loss", 1, 0.5),
        ("loss", 2, None),
        ("defect", 2, 0.1),
    ]
    assert follow({"Last-Event-ID": whole[0]["id"]}) == whole[1:]
    assert follow({"Last-Event-ID": "nonsense"}) == whole
    assert follow({}, name="defect") == whole[2:]
    problem(client.get("/v1/jobs/job_0/metrics", headers=STREAM), 404, "not_found")


def test_a_checkpoint_tells_what_was_measured_at_its_steps(
    client: httpx.Client, house: House
) -> None:
    job = submit(client)
    held = house.work(job["id"])
    blob = house.blobs.put_stream(held.tenant, [b"state"])
    names = [f"step-{step:09d}.weights.safetensors" for step in (3, 6)]
    files = [StateFile(name, 5, [Segment(blob.sha256, 5)]) for name in names]
    points = [Point("loss", 2, 0.9), Point("loss", 3, 0.8), Point("test_accuracy", 6, 0.7)]
    progress.record(house.db, job_id=job["id"], fence=held.fence, metrics=points)
    progress.checkpoint(house.db, job_id=job["id"], fence=held.fence, step=6, files=files)
    (found,) = client.get(job["links"]["checkpoints"]).json()["data"]
    assert [file["metrics"] for file in found["files"]] == [{"loss": 0.8}, {"test_accuracy": 0.7}]


def test_the_end_is_estimated_with_a_range(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])

    def report(done: float, **extra: float) -> dict[str, Any]:
        told = Progress("running", done, 100.0, extra=extra)
        progress.record(house.db, job_id=job["id"], fence=held.fence, progress=told)
        found: dict[str, Any] = client.get(job["links"]["self"]).json()["progress"]
        return found

    assert report(1)["eta_latest"] is None
    time.sleep(0.02)
    found = report(20, rate=2.0, rate_low=1.0, rate_high=4.0)
    early, late = (datetime.fromisoformat(found[f"eta_{x}"]) for x in ("earliest", "latest"))
    assert abs((late - early).total_seconds() - 60.0) < 1e-3
    assert found["rate"] == 2.0


def test_checkpoints_are_listed(client: httpx.Client, house: House) -> None:
    job = submit(client)
    held = house.work(job["id"])
    blob = house.blobs.put_stream(held.tenant, [b"state"])
    files = [StateFile("body.bin", 5, [Segment(blob.sha256, 5)])]
    progress.checkpoint(house.db, job_id=job["id"], fence=held.fence, step=3, files=files)
    found = client.get(job["links"]["checkpoints"]).json()["data"]
    assert [(item["number"], item["step"], item["bytes"]) for item in found] == [(1, 3, 5)]
