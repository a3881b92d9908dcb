"""Training jobs against the memory of a real worker: who is admitted, and how too much ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from crew import TENANT, Site, embedded_site, until

from stiefel_jobs.records import Job, Submission
from stiefel_jobs.states import Blame, State
from stiefel_jobs.store.submit import submit
from stiefel_jobs.store.workers import list_workers

LIMIT = 700 * 2**20
COPYING = {"kind": "copying_memory", "delay": 2, "length": 1, "batches_per_epoch": 50}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A worker that gives one job 700 MiB."""
    made = embedded_site(tmp_path_factory.mktemp("small"))
    try:
        made.start(STIEFEL_WORKER_MEMORY_BYTES=LIMIT)
        yield made
    finally:
        made.close()


def train(site: Site, hidden: int, **options: Any) -> Job:
    network = {"family": "rnn", "hidden": hidden, "activation": "relu"}
    spec = {
        "method": "train.dense",
        "network": network | {"initialisation": "identity"},
        "data": COPYING,
        "batch_size": 1,
        "epochs": 1,
        "device": "cpu",
    }
    request = Submission("train.dense", spec, **options)
    job = submit(site.db, tenant=TENANT, submission=request).job
    assert site.bell.ring("cpu", job.id)
    return job


def test_the_worker_tells_what_one_job_may_have(small: Site) -> None:
    until(lambda: list_workers(small.db), 30)
    (worker,) = list_workers(small.db)
    assert worker.devices["memory_bytes"] == LIMIT


def test_a_job_that_would_need_too_much_fails_before_it_begins(small: Site) -> None:
    job = small.wait(train(small, 7000).id, seconds=90)  # 0.8 GB with gradient and Adam
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.RESOURCE, "too_large")
    assert job.error is not None
    assert "gives one job 0.7 GiB" in job.error["detail"]
    assert "batch_size" in job.error["fix"]
    assert small.reasons(job.id) == ["too_large"]


def test_of_another_librarys_network_the_worker_tells_how_large_it_is(small: Site) -> None:
    """The plan cannot: it knows neither what a config leaves out, nor what images hold."""
    config = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2}
    network = {"family": "transformers", "task": "causal_language_model"}
    text = {"kind": "text", "context": 64, "train": small.upload(b"to be or not to be, " * 500).id}

    def job(**changes: Any) -> Job:
        spec = {
            "method": "train.dense",
            "network": network | {"config": config | changes},
            "data": text,
            "max_steps": 1,
            "batch_size": 4,
            "device": "cpu",
        }
        request = Submission("train.dense", spec, inputs={"train": text["train"]})
        made = submit(small.db, tenant=TENANT, submission=request).job
        assert small.bell.ring("cpu", made.id)
        return small.wait(made.id, seconds=90)

    large = job(n_embd=2048, n_head=16, n_layer=24)
    assert (large.state, large.reason) == (State.FAILED, "too_large")
    assert small.reasons(large.id) == ["too_large"]


def test_a_full_gpu_ends_the_same_way(small: Site) -> None:
    text = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 15.78 GiB in total"
    job = small.wait(small.submit("overfill", text=text))
    assert (job.state, job.blame, job.reason) == (State.FAILED, Blame.RESOURCE, "out_of_memory")
    assert job.error is not None
    assert "20.00 GiB" in job.error["detail"]
    assert "smaller batch" in job.error["fix"]


def test_a_job_too_large_for_the_worker_is_left_for_another(small: Site) -> None:
    large = train(small, 16, peak_memory_bytes=LIMIT + 1)
    done = small.wait(train(small, 16, peak_memory_bytes=LIMIT).id)
    assert done.state is State.SUCCEEDED
    assert small.job(large.id).state is State.QUEUED
