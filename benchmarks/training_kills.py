"""A training job killed at random points ends with the weights of an undisturbed run, bit for bit.

    python benchmarks/training_kills.py [--devices 1] [--kills 10] [--append] [--out training_kills]

An embedded service trains a network with batch normalisation and dropout on sklearn's digits, once
undisturbed and once under `kill -9` at random steps: the first half of the kills hits a process
that trains (the service waits longer before each new attempt), the second half the worker, after
which another one is started. With ``--devices 2`` two gloo processes train together. The bar: the
same SHA-256 of ``model.safetensors`` and of ``best.safetensors``.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from stage import Service, command_line, publish, service
from trainings import digits, earlier, uploaded

PACE = {"lease_s": 3, "beat_s": 0.5, "poll_s": 0.5, "sweep_s": 0.5, "worker_threads": 1}


def main() -> int:
    options = _options()
    rows = earlier(options.out, options.append)
    with (
        tempfile.TemporaryDirectory() as folder,
        service(Path(folder), "embedded", **PACE) as made,
    ):
        rows.append(_compare(made, options))
    same = all(row["bit_equal"] for row in rows)
    command = command_line()
    publish(options.out, "Training under kills", command, rows, all_bit_equal=same)
    return int(not same)


def _compare(made: Service, options: argparse.Namespace) -> dict[str, Any]:
    made.start_api()
    workers = [made.start_worker()]
    spec = {
        "method": options.method,
        "network": {
            "family": "mlp",
            "hidden": [48, 48, 48],
            "normalisation": "batch",
            "dropout": 0.1,
        },
        "data": uploaded(made, digits()),
        "batch_size": 32,
        "epochs": options.epochs,
        "log_every": 50,
        "checkpoint_every": 25,
        "device": "cpu",
        "devices": options.devices,
        "seed": options.seed,
    }
    began = time.perf_counter()
    whole = made.wait(made.post("/v1/jobs", {"spec": spec})["id"])
    assert whole["status"] == "succeeded", whole
    undisturbed_s = time.perf_counter() - began
    steps = int(whole["progress"]["total"])
    chance = random.Random(options.seed)
    points = sorted(chance.sample(range(1, steps * 9 // 10), options.kills))
    began = time.perf_counter()
    job = made.post("/v1/jobs", {"spec": spec, "max_attempts": 20})["id"]
    struck: list[tuple[int, str]] = []
    for point in points:
        struck.append(
            _strike(made, workers, job, point, chance, worker=len(struck) >= options.kills // 2)
        )
    killed = made.wait(job)
    assert killed["status"] == "succeeded", killed
    attempts = made.get(f"/v1/jobs/{job}/attempts")["data"]
    digests = {name: _digests(whole, killed, name) for name in ("model", "best")}
    return {
        "method": options.method,
        "devices": options.devices,
        "steps": steps,
        "kills": len(struck),
        "of_workers": sum(victim == "worker" for _, victim in struck),
        "at_steps": " ".join(str(step) for step, _ in struck),
        "attempts": len(attempts),
        "resumed_from": " ".join(str(a["resumed_from"] or 0) for a in attempts),
        "undisturbed_s": round(undisturbed_s, 1),
        "killed_s": round(time.perf_counter() - began, 1),
        "sha256": digests["model"][0][:16],
        "bit_equal": all(one == two for one, two in digests.values()),
    }


def _digests(whole: dict[str, Any], killed: dict[str, Any], name: str) -> tuple[str, str]:
    one, two = (job["result"]["files"][f"{name}.safetensors"]["sha256"] for job in (whole, killed))
    return one, two


def _strike(
    made: Service,
    workers: list[subprocess.Popen[bytes]],
    job_id: str,
    point: int,
    chance: random.Random,
    *,
    worker: bool,
) -> tuple[int, str]:
    """Kill something once the job has gone on and is past ``point``; the step that was seen."""
    before = _reached(made, job_id)
    while True:
        reached = _reached(made, job_id)
        victims = _training(workers[-1].pid) if reached >= point and reached != before else []
        if victims:
            break
        time.sleep(0.01)
    if worker:
        workers[-1].kill()
        workers[-1].wait()
        workers.append(made.start_worker(len(workers)))
        return reached, "worker"
    chance.choice(victims).kill()
    return reached, "child"


def _reached(made: Service, job_id: str) -> int:
    job = made.get(f"/v1/jobs/{job_id}")
    assert job["status"] in {"queued", "running"}, job
    return int((job["progress"] or {}).get("done", 0))


def _training(worker: int) -> list[psutil.Process]:
    """The processes that train: whatever the worker's fork server has started."""
    try:
        servers = psutil.Process(worker).children()
        return [process for server in servers for process in server.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="train.dense")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="add to the rows of the result")
    parser.add_argument("--out", default="training_kills")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
