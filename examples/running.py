"""What every example shares: a service to talk to, data to upload, a job to follow."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from safetensors.numpy import load_file, save_file

from stiefel_client import Job, Stiefel
from stiefel_client.locate import find_service
from stiefel_client.verify import verify


def arguments(description: str, *, epochs: int) -> argparse.Namespace:
    """``--epochs`` and ``--output``, which every example takes."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--output", type=Path, help="where the results go; default: nowhere")
    return parser.parse_args()


@contextmanager
def connected() -> Iterator[Stiefel]:
    """A client of the service that answers; where none does, of one that lives in the block."""
    if _answers(find_service().url):
        with Stiefel() as client:
            yield client
        return
    with tempfile.TemporaryDirectory(prefix="stiefel-example-") as folder:
        process = _serve(Path(folder))
        try:
            url = _announced(process, Path(folder))
            key = (Path(folder) / "api_key").read_text().strip()
            with Stiefel(url, key) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=90)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def _serve(folder: Path) -> subprocess.Popen[bytes]:
    stiefel = Path(sys.executable).with_name("stiefel")
    env = {name: value for name, value in os.environ.items() if not name.startswith("STIEFEL_")}
    with (folder / "service.log").open("wb") as log:
        return subprocess.Popen(
            [str(stiefel), "serve", "--data-dir", str(folder), "--port", "0"],
            env=env,
            stdout=log,
            stderr=log,
        )


def _announced(process: subprocess.Popen[bytes], folder: Path) -> str:
    url = folder / "api_url"
    while process.poll() is None:
        if url.exists() and (found := url.read_text().strip()):
            return found
        time.sleep(0.05)
    raise SystemExit((folder / "service.log").read_text()[-2000:])


def upload_digits(client: Stiefel) -> dict[str, Any]:
    """Upload the 1,797 digits of scikit-learn, 8 x 8 pixels each; return the spec's ``data``."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    artifact = upload_arrays(client, x=digits.images.astype(np.float32), y=digits.target)
    return {"kind": "arrays", "train": artifact, "input": "x", "label": "y", "held_out": 0.2}


def upload_arrays(client: Stiefel, **arrays: np.ndarray) -> str:
    """Upload arrays as one `.npz` file and return its artifact's id."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        path.write_bytes(buffer.getvalue())
        return client.uploads.upload(path).id


def follow(client: Stiefel, spec: Mapping[str, Any]) -> Job:
    """Submit a job, print its curves as they grow, and return it when it has succeeded."""
    job = client.jobs.submit(spec)
    print(f"{spec['method']}: {job.id}")
    seen: set[tuple[str, int]] = set()
    while not job.finished:
        time.sleep(0.2)
        job = client.jobs.get(job.id)
        _print_new(client, job, seen)
    if not job.succeeded:
        detail = f"{job.error.detail} {job.error.fix}" if job.error else ""
        raise SystemExit(f"{job.status}: {detail}")
    return job


def _print_new(client: Stiefel, job: Job, seen: set[tuple[str, int]]) -> None:
    rows: dict[int, list[str]] = {}
    for point in client.jobs.metrics(job.id)["data"]:
        key = (point["name"], point["step"])
        if key not in seen and point["name"] != "loss":
            seen.add(key)
            rows.setdefault(point["step"], []).append(f"{point['name']} {point['value']:.4g}")
    for step, figures in sorted(rows.items()):
        print(f"  step {step:5}  " + "  ".join(figures))


def finish(client: Stiefel, job: Job, output: Path | None) -> dict[str, Any]:
    """Download the files, verify them offline, print and return the job's closing figures."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = output or Path(scratch)
        files = client.jobs.download(job, folder)
        for path in files:
            if path.suffix == ".safetensors":
                outcome = verify(path, certificate=folder / "certificate.json")
                print(f"  {path.name}: {path.stat().st_size:,} bytes, verified: {outcome.ok}")
                if not outcome.ok:
                    raise SystemExit(outcome.findings[0].detail)
    assert job.result is not None  # the job has succeeded
    return job.result.metrics


def convert(
    client: Stiefel,
    spec: Mapping[str, Any],
    weights: Mapping[str, np.ndarray],
    output: Path | None,
) -> dict[str, np.ndarray]:
    """Upload a checkpoint, convert it as ``spec`` says, verify it, return the new tensors."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.safetensors"
        save_file(dict(weights), source)
        job = follow(client, {**spec, "input": client.uploads.upload(source).id})
        folder = output or Path(scratch) / "out"
        finish(client, job, folder)
        return load_file(folder / "model.safetensors")
