"""Whole training jobs on a GPU, without the service."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stiefel.errors import StopRequested
from stiefel.methods import METHODS
from stiefel.methods.local import FolderRun, assemble
from stiefel.specs import parse_spec

ARRAYS = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y", "held_out": 0.25}
COPYING = {
    "kind": "copying_memory",
    "delay": 4,
    "length": 2,
    "symbols": 3,
    "batches_per_epoch": 6,
}
VIT = {"family": "vit", "patch": 2, "width": 16, "depth": 2, "heads": 2, "hidden": 32}
JOBS: dict[str, dict[str, Any]] = {
    "dense": {"method": "train.dense", "network": {"family": "mlp", "hidden": [24, 24]}},
    "dlrt": {
        "method": "train.dlrt",
        "network": {"family": "mlp", "hidden": [24, 24]},
        "initial_rank": 6,
        "phase": 2,
    },
    "oialr": {"method": "train.oialr", "network": VIT, "delay": 2, "period": 2},
    "conv": {"method": "train.dlrt", "network": {"family": "lenet5"}, "initial_rank": 4},
    "rnn": {
        "method": "train.projunn",
        "network": {"family": "rnn", "hidden": 12},
        "data": COPYING,
    },
    "mlp": {"method": "train.projunn", "network": {"family": "mlp", "hidden": [64, 64]}},
}


def arrays(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    x = source.standard_normal((96, 16, 16), dtype=np.float32)
    with (folder / "train").open("wb") as file:
        np.savez(file, x=x, y=(x[:, 0, 0] > 0).astype(np.int64))


def run(
    folder: Path, device: torch.device, name: str, stop_at: int | None = None, **more: Any
) -> dict[str, torch.Tensor]:
    """Train in ``folder`` and return the weights; with ``stop_at`` in two attempts."""
    spec = {"data": ARRAYS, "batch_size": 16, "epochs": 3, "checkpoint_every": 3, "log_every": 1}
    parsed = parse_spec(spec | JOBS[name] | {"device": device.type, **more})
    arrays(folder / "in")

    def attempt(until: int | None) -> Any:
        state = FolderRun(
            folder / "in",
            folder / "state",
            should_stop=lambda step: until is not None and step >= until,
        )
        return METHODS[parsed.method].run(parsed, state)

    if stop_at is not None:
        with pytest.raises(StopRequested):
            attempt(stop_at)
    outcome = attempt(None)
    for delivery in outcome.deliveries:
        (folder / "out").mkdir(exist_ok=True)
        assemble(delivery, folder / "out" / delivery.name)
    return load_file(folder / "out" / "model.safetensors")


@pytest.mark.parametrize("name", JOBS)
def test_a_job_trains_and_delivers(name: str, device: torch.device, tmp_path: Path) -> None:
    weights = run(tmp_path, device, name)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    totals = json.loads((tmp_path / "out" / "report.json").read_text())["totals"]
    assert totals["peak_memory_bytes"] > 0


@pytest.mark.parametrize("name", JOBS)
def test_resuming_equals_not_stopping(name: str, device: torch.device, tmp_path: Path) -> None:
    """To the bit where the run is deterministic, which on a GPU is asked for."""
    whole = run(tmp_path / "whole", device, name, deterministic=True)
    resumed = run(tmp_path / "resumed", device, name, stop_at=6, deterministic=True)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[key], tensor) for key, tensor in whole.items())


def test_too_large_a_job_is_refused_or_says_out_of_memory(
    gpu: torch.device, tmp_path: Path
) -> None:
    torch.cuda.set_per_process_memory_fraction(0.001)
    torch.cuda.empty_cache()
    try:
        network = {"family": "mlp", "hidden": [6000, 6000]}
        with pytest.raises(torch.OutOfMemoryError):
            run(tmp_path, gpu, "dense", network=network)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
