"""Training jobs for benchmarks: arrays of MNIST's size made by a seed, and digits."""

from __future__ import annotations

import io
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


def earlier(name: str, append: bool) -> list[dict[str, Any]]:
    """Rows of the result that this run adds to."""
    import json

    path: Path = RESULTS / f"{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if append else []
    return rows
