"""Training jobs for benchmarks: arrays of MNIST's size or digits, and how long a training takes.

A training takes its time as a job of a service, or bare in a script without one.
"""

from __future__ import annotations

import io
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from stage import RESULTS, Service


def arrays(count: int = 20_000) -> bytes:
    """An `.npz` of ``count`` random grey images of 28 x 28 with labels that can be learnt."""
    draw = np.random.default_rng(0)
    prototypes = draw.integers(0, 256, (10, 28, 28))
    labels = draw.integers(0, 10, count)
    images = (prototypes[labels] + draw.normal(0, 80, (count, 28, 28))).clip(0, 255)
    buffer = io.BytesIO()
    np.savez(buffer, x=images.astype(np.uint8), y=labels)
    return buffer.getvalue()


def digits() -> bytes:
    """An `.npz` of sklearn's digits."""
    from sklearn.datasets import load_digits

    found = load_digits()
    buffer = io.BytesIO()
    np.savez(buffer, x=found.images.astype(np.float32), y=found.target)
    return buffer.getvalue()


def uploaded(made: Service, content: bytes) -> dict[str, Any]:
    """The spec's data, uploaded."""
    artifact = made.upload("data.npz", iter([content]), len(content))
    return {"kind": "arrays", "train": artifact, "input": "x", "label": "y"}


def network(epochs: int, data: dict[str, Any], *, seed: int, **more: Any) -> dict[str, Any]:
    """The spec of the training that is timed: an MLP, dense."""
    return {
        "method": "train.dense",
        "network": {"family": "mlp", "hidden": [500, 500, 500]},
        "data": data,
        "epochs": epochs,
        "batch_size": 128,
        "device": "cpu",
        "seed": seed,
    } | more


def job_seconds(made: Service, spec: dict[str, Any]) -> float:
    """From POST to succeeded."""
    began = time.perf_counter()
    done = made.wait(made.post("/v1/jobs", {"spec": spec})["id"])
    assert done["status"] == "succeeded", done
    return time.perf_counter() - began


def bare_seconds(source: Path, spec: dict[str, Any]) -> float:
    """The same loop in this process, its data in ``source``; importing torch is not counted."""
    from stiefel.methods.local import run_local
    from stiefel.specs import parse_spec

    data = {"kind": "arrays", "train": "art_0", "input": "x", "label": "y"}
    parsed = parse_spec(spec | {"data": data})
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_local(parsed, source, Path(folder) / "out")
        return time.perf_counter() - began


def earlier(name: str, append: bool) -> list[dict[str, Any]]:
    """Rows of the result that this run adds to."""
    import json

    path: Path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if append else []
    return rows
