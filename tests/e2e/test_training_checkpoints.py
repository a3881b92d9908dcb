"""Weights to take away while a job trains, after its end, and those of its best evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load, load_file
from stacks import with_checkpoint
from trainings import training

from stiefel_client import Stiefel
from stiefel_client.verify import verify

LAYERS = ("hidden.0.linear", "hidden.1.linear", "head")


def test_a_running_job_gives_away_its_newest_weights(
    embedded_stack: Any, local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    network = {"family": "mlp", "hidden": [32, 32]}
    job = local.jobs.submit(training(digits, network=network, epochs=100_000))
    assert with_checkpoint(local, job).status == "running"
    paths = local.jobs.download_checkpoint(job.id, tmp_path / "running")
    weights = sorted(path for path in paths if ".weights." in path.name)
    assert {f"{layer}.weight" for layer in LAYERS} < set(load_file(weights[-1]))
    out = tmp_path / "command"
    command = "from stiefel_client.cli import main; main()"
    arguments = ["checkpoints", job.id, "--output", str(out), "--url", embedded_stack.url]
    done = subprocess.run(
        [sys.executable, "-c", command, *arguments, "--key", embedded_stack.key],
        capture_output=True,
        text=True,
        env=os.environ | {"STIEFEL_DATA_DIR": str(tmp_path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(out.iterdir()) == sorted(map(Path, done.stdout.split()))
    local.jobs.cancel(job.id)
    assert local.jobs.wait(job.id, timeout=30).status == "cancelled"
    kept = local.jobs.checkpoints(job.id)["data"][-1]
    (file,) = [f for f in kept["files"] if ".weights." in f["name"]][-1:]
    answer = local.http.get(file["url"])
    assert answer.status_code == 200
    assert len(answer.content) == file["bytes"]
    assert set(load(answer.content)) == set(load_file(weights[-1]))
    part = local.http.get(file["url"], headers={"Range": "bytes=8-15"})
    assert (part.status_code, part.content) == (206, answer.content[8:16])


def test_a_finished_job_keeps_its_checkpoints_and_delivers_its_best_weights(
    local: Stiefel, digits: dict[str, Any], tmp_path: Path
) -> None:
    # A rate that grows past its best: the last evaluation is not the best one.
    spec = training(
        digits,
        network={"family": "mlp", "hidden": [32, 32]},
        optimizer={"name": "sgd", "learning_rate": 6.0, "momentum": 0.0},
        schedule={"kind": "constant", "warmup_steps": 600},
        epochs=12,
        checkpoint_every=None,
    )
    job = local.jobs.wait(local.jobs.submit(spec).id, timeout=120)
    assert job.succeeded, job.error
    assert job.result is not None
    out = tmp_path / "out"
    local.jobs.download(job, out)
    assert verify(out).ok
    totals = json.loads((out / "report.json").read_text())["totals"]
    assert totals["best_step"] < totals["steps"]
    assert totals["best_test_accuracy"] >= totals["test_accuracy"]
    best = load_file(out / "best.safetensors")
    last = load_file(out / "model.safetensors")
    assert best.keys() == last.keys()
    assert not np.array_equal(best["head.weight"], last["head.weight"])
    assert local.jobs.checkpoints(job.id)["data"][-1]["step"] == totals["steps"]
    paths = {path.name: path for path in local.jobs.download_checkpoint(job.id, tmp_path / "kept")}
    kept = load_file(paths[f"step-{int(totals['best_step']):09d}.weights.safetensors"])
    assert all(np.array_equal(best[name], kept[name]) for name in kept)
    again = local.jobs.wait(local.jobs.submit(spec | {"deliver": "best"}).id, timeout=120)
    assert again.result is not None
    assert "best.safetensors" not in again.result.files
    assert (
        again.result.files["model.safetensors"].sha256
        == job.result.files["best.safetensors"].sha256
    )
    assert again.result.metrics["test_accuracy"] == totals["best_test_accuracy"]


def test_checkpoints_are_their_owners_and_dropped_ones_are_named(
    embedded_stack: Any, local: Stiefel, digits: dict[str, Any]
) -> None:
    job = local.jobs.wait(local.jobs.submit(training(digits, epochs=1)).id, timeout=60)
    assert job.succeeded, job.error
    kept = local.jobs.checkpoints(job.id)["data"]
    url = kept[-1]["files"][0]["url"]
    assert httpx.get(embedded_stack.url + url, trust_env=False).status_code == 401
    answer = local.http.get(url.replace(f"/{kept[-1]['number']}/", "/99999/"))
    assert (answer.status_code, answer.json()["code"]) == (404, "checkpoint_not_found")
    assert str(kept[-1]["number"]) in answer.json()["fix"]
    answer = local.http.get(url + "x")
    assert (answer.status_code, answer.json()["code"]) == (404, "file_not_found")
