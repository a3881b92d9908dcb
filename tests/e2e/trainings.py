"""Training jobs for the tests: digits, and a small network."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from stiefel_client import Stiefel


def uploaded_digits(client: Stiefel, folder: Path, **changes: Any) -> dict[str, Any]:
    """The spec's data: digits as an uploaded `.npz`; ``changes`` replace arrays."""
    found = load_digits()
    arrays = {"x": found.images.astype(np.float32), "y": found.target}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays | changes)
    (folder / "digits.npz").write_bytes(buffer.getvalue())
    artifact = client.uploads.upload(folder / "digits.npz")
    return {"kind": "arrays", "train": artifact.id, "input": "x", "label": "y"}


def training(data: dict[str, Any], **changes: Any) -> dict[str, Any]:
    network = {"family": "mlp", "hidden": [32, 32], "normalisation": "batch", "dropout": 0.1}
    return {
        "method": "train.dense",
        "network": network,
        "data": data,
        "batch_size": 32,
        "epochs": 20,
        "log_every": 100,
        "checkpoint_every": 20,
        "device": "cpu",
    } | changes
