"""Ordinary optimizers and learning-rate schedules, from their specs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from stiefel.lowrank.galore import GaLoreAdamW
from stiefel.specs.training import Optimizer, Schedule


def build_optimizer(spec: Optimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer of every parameter that is trained.

    Vectors (biases, gains of normalisation layers) take no weight decay.
    """
    free = [p for p in parameters if p.requires_grad]
    groups = [
        {"params": [p for p in free if p.dim() > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in free if p.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = spec.learning_rate
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=spec.momentum)
    if spec.name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate)
    if spec.name == "galore":
        return GaLoreAdamW(groups, lr=rate, **spec.subspace.model_dump())
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=rate, foreach=True)


def rate_factor(spec: Schedule, *, step: int, steps: int, steps_per_epoch: int) -> float:
    """Factor on the learning rate for step ``step`` of ``steps``, counted from 0.

    A function of the step alone: nothing to save, nothing to restore.
    """
    if step < spec.warmup_steps:
        return (step + 1) / spec.warmup_steps
    done = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    if spec.kind == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    if spec.kind == "linear":
        return max(0.0, 1.0 - done)
    if spec.kind == "exponential":
        return float(spec.factor_per_epoch ** (step // steps_per_epoch))
    return 1.0
