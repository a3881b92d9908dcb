"""The training methods' samples for the conformance suite: a little network, a made task."""

from __future__ import annotations

from typing import Any

import numpy as np
from converting import Job, Sample

NETWORK = {"family": "mlp", "hidden": [24, 24]}
DATA = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y", "held_out": 0.25}
RHYTHM = {"batch_size": 16, "epochs": 2, "checkpoint_every": 2, "log_every": 1}


def arrays(job: Job) -> Job:
    job.input.mkdir(parents=True, exist_ok=True)
    source = np.random.default_rng(0)
    x = source.standard_normal((96, 20), dtype=np.float32)
    with (job.input / "train").open("wb") as file:
        np.savez(file, x=x, y=(x[:, 0] > 0).astype(np.int64))
    return job


def sample(**extra: Any) -> Sample:
    return Sample({"network": NETWORK, "data": DATA, **RHYTHM, **extra}, arrays)


COPYING = {
    "kind": "copying_memory",
    "delay": 4,
    "length": 2,
    "symbols": 3,
    "batches_per_epoch": 4,
}


def nothing(job: Job) -> Job:
    job.input.mkdir(parents=True, exist_ok=True)
    return job


SAMPLES = {
    "train.dense": sample(),
    "train.dlrt": sample(initial_rank=6, phase=2),
    "train.projunn": Sample(
        {"network": {"family": "rnn", "hidden": 12}, "data": COPYING, **RHYTHM}, nothing
    ),
    "train.oialr": sample(delay=2, period=2),
}
