"""Cancel, pause, resume, and workers killed in the middle of a job."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from checkpoints import matrices, sharded
from safetensors.numpy import load_file
from stacks import with_checkpoint

from stiefel_client import ConflictError, Job, Stiefel
from stiefel_client.verify import verify

COUNT = 200
SIDE = 320  # some seconds of work on two free cores


@pytest.fixture(scope="module")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "model.safetensors"
    return matrices(path, count=COUNT, side=SIDE)


def begin(client: Stiefel, path: Path, **options) -> Job:
    """Submit a job of some seconds and wait until it has converted a few matrices."""
    source = client.uploads.upload(path)
    spec = {"method": "project.unitary", "input": source.id, "include": ["w*"]}
    job = client.jobs.submit(spec | options)
    until(client, job.id, lambda job: (job.progress.done if job.progress else 0) >= 3)
    return job


def until(client: Stiefel, job_id: str, condition, seconds: float = 60) -> Job:
    end = time.monotonic() + seconds
    while True:
        job = client.jobs.get(job_id)
        if condition(job):
            return job
        assert not job.finished, (job.status, job.error)
        assert time.monotonic() < end, (job.status, job.progress)
        time.sleep(0.05)


def test_cancel_ends_a_running_job_within_two_seconds(client, long_checkpoint) -> None:
    job = begin(client, long_checkpoint)
    begun = time.monotonic()
    client.jobs.cancel(job.id)
    done = client.jobs.wait(job.id, timeout=20)
    assert done.status == "cancelled"
    assert time.monotonic() - begun < 4  # two, and the time of two busy cores
    assert done.result is None
    assert client.jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(ConflictError) as caught:
        client.jobs.pause(job.id)
    assert "retry" in caught.value.allowed_actions


def test_pause_and_resume_lose_nothing(client, long_checkpoint, tmp_path) -> None:
    whole = client.jobs.wait(begin(client, long_checkpoint).id, timeout=120)
    job = begin(client, long_checkpoint)
    client.jobs.pause(job.id)
    paused = until(client, job.id, lambda job: job.status == "paused")
    done_before = paused.progress.done
    time.sleep(0.5)
    assert client.jobs.get(job.id).progress.done == done_before
    client.jobs.resume(job.id)
    done = client.jobs.wait(job.id, timeout=120)
    assert done.succeeded, done.error
    resumed = client.jobs.attempts(job.id)["data"][-1]["resumed_from"]
    assert resumed is not None
    assert resumed >= 3
    assert weights_of(done) == weights_of(whole)
    client.jobs.download(done, tmp_path)
    assert verify(tmp_path, original=long_checkpoint).ok


def weights_of(job: Job) -> str:
    return job.result.files["model.safetensors"].sha256


def test_a_killed_worker_costs_no_job(stack, client, long_checkpoint) -> None:
    job = with_checkpoint(client, begin(client, long_checkpoint, seed=1))
    worker = client.jobs.attempts(job.id)["data"][0]["worker"]
    victims = [p for p in stack.workers() if f"{p.pid}" in worker] or stack.workers()
    for victim in victims:
        victim.kill()
    done = client.jobs.wait(job.id, timeout=120)
    assert done.succeeded, done.error
    attempts = client.jobs.attempts(job.id)["data"]
    assert len(attempts) == 2
    assert attempts[0]["blame"] == "system"
    assert attempts[1]["resumed_from"] >= 1
    events = list(client.jobs.events(job.id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    succeeded = [e for e in events if e.data.get("state") == "succeeded"]
    assert len(succeeded) == 1


def test_a_sharded_checkpoint_comes_back_in_its_shards(client, tmp_path) -> None:
    folder = sharded(tmp_path / "in")
    inputs = {path.name: client.uploads.upload(path).id for path in sorted(folder.iterdir())}
    assert len(inputs) == 3
    job = client.jobs.submit({"method": "project.unitary", "input": inputs})
    done = client.jobs.wait(job.id, timeout=60)
    assert done.succeeded, done.error
    client.jobs.download(done, tmp_path / "out")
    assert inputs.keys() < set(done.result.files)
    outcome = verify(tmp_path / "out", original=folder)
    assert outcome.ok, outcome.findings
    assert len(outcome.files) == 2
    after = load_file(tmp_path / "out" / "model-00002-of-00002.safetensors")
    assert set(after) == {"layer.2.weight", "layer.2.bias"}


def test_one_key_makes_one_job(client, tmp_path) -> None:
    source = client.uploads.upload(matrices(tmp_path / "model.safetensors", count=1, side=8))
    spec = {"method": "project.unitary", "input": source.id}
    first = client.jobs.submit(spec, idempotency_key="only once")
    again = client.jobs.submit(spec, idempotency_key="only once")
    assert first.id == again.id
    assert client.jobs.wait(first.id, timeout=60).succeeded
