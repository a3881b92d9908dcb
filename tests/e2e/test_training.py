"""Training through a running service: killed again and again, paused, and what it hands over."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from safetensors.torch import load_file
from stacks import Stack, with_checkpoint
from trainings import training

from stiefel_client import Job, Stiefel
from stiefel_client.verify import verify

TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 4,
}


def done(client: Stiefel, job: Job) -> Job:
    finished = client.jobs.wait(job.id, timeout=240)
    assert finished.succeeded, finished.error
    return finished


def digest(job: Job) -> str:
    assert job.result is not None
    return job.result.files["model.safetensors"].sha256


def victims(stack: Any) -> list[psutil.Process]:
    """The processes that train: whatever the worker's fork server has started."""
    servers = [server for worker in stack.workers() for server in worker.children()]
    return [process for server in servers for process in server.children(recursive=True)]


@pytest.mark.parametrize(("devices", "epochs", "most"), [(1, 120, 4), (2, 40, 2)])
def test_a_run_killed_at_random_points_ends_with_the_same_weights(
    devices: int,
    epochs: int,
    most: int,
    embedded_stack: Stack,
    local: Stiefel,
    digits: dict[str, Any],
) -> None:
    spec = training(digits, devices=devices, epochs=epochs)
    whole = done(local, local.jobs.submit(spec))
    job = local.jobs.submit(spec, max_attempts=20)
    chance = random.Random(devices)
    killed = 0
    while killed < most and under_way(local, job, killed + 1):
        time.sleep(chance.uniform(0, 0.3))
        if killed == most - 1:
            with_checkpoint(local, job)  # or all of them could fall before the first
        strike(embedded_stack, chance, worker=killed == 1)
        killed += 1
    assert killed == most
    assert digest(done(local, job)) == digest(whole)
    attempts = local.jobs.attempts(job.id)["data"]
    assert len(attempts) == killed + 1
    assert attempts[-1]["resumed_from"] > 0


def under_way(client: Stiefel, job: Job, number: int) -> bool:
    """Wait until the attempt of this number has taken steps of its own; False if it is done."""
    before: float | None = None
    while True:
        job = client.jobs.get(job.id)
        if job.finished:
            assert job.succeeded, (job.error, number)
            return False
        reached = job.progress.done if job.progress and job.progress.unit == "step" else 0.0
        if len(client.jobs.attempts(job.id)["data"]) == number and job.status == "running":
            if before is None:
                before = reached  # of the attempt before it
            elif reached != before:
                return True
        time.sleep(0.02)


def strike(stack: Any, chance: random.Random, *, worker: bool) -> None:
    """kill -9 one process that trains, or the worker."""
    end = time.monotonic() + 60
    while not (targets := stack.workers() if worker else victims(stack)):
        assert time.monotonic() < end, "nobody trains any more"
        time.sleep(0.02)  # between a process and its successor
    chance.choice(targets).kill()


def test_a_paused_run_goes_on_as_if_nothing_had_been(
    local: Stiefel, digits: dict[str, Any]
) -> None:
    network = {"family": "mlp", "hidden": [32, 32, 32]}
    spec = training(digits, method="train.dlrt", network=network, epochs=30)
    whole = done(local, local.jobs.submit(spec))
    job = local.jobs.submit(spec)
    while not (job.progress and job.progress.done):
        time.sleep(0.02)
        job = local.jobs.get(job.id)
    local.jobs.pause(job.id)
    while job.status != "paused":
        time.sleep(0.02)
        job = local.jobs.get(job.id)
        assert not job.finished, job.status
    local.jobs.resume(job.id)
    assert digest(done(local, job)) == digest(whole)


def test_a_transformers_network_comes_back_with_from_pretrained(
    local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    network = {"family": "transformers", "task": "image_classification", "config": TINY_VIT}
    spec = training(digits, method="train.projunn", network=network, epochs=1)
    job = done(local, local.jobs.submit(spec))
    out = tmp_path / "out"
    local.jobs.download(job, out)
    assert verify(out).ok
    model = transformers.AutoModelForImageClassification.from_pretrained(out, local_files_only=True)
    stored = load_file(out / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == stored.keys()
    assert all((state[name] == stored[name]).all() for name in stored)
    card = (out / "README.md").read_text()
    assert "train.projunn" in card
    assert "test_accuracy" in card
    totals = json.loads((out / "report.json").read_text())["totals"]
    assert totals["steps"] == 50
