"""Optimizer state of a core across changes of basis: the state lives on S and turns with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stiefel.lowrank.steps import pad_core, transport_first, transport_second

# Entries that average squares, and those that are roots of such; every other entry of the core's
# shape is linear in the gradient.
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"})
ROOTS = frozenset({"exp_inf"})


def pad_state(optimizer: torch.optim.Optimizer, core: nn.Parameter, shape: torch.Size) -> None:
    """Grow every entry of the core's old ``shape`` with zeros to its present one."""
    rows, columns = core.shape[-2] - shape[-2], core.shape[-1] - shape[-1]
    if rows == 0 and columns == 0:
        return
    for key, value in _entries(optimizer, core, shape):
        optimizer.state[core][key] = pad_core(value, rows, columns)


def rotate_state(
    optimizer: torch.optim.Optimizer,
    core: nn.Parameter,
    shape: torch.Size,
    left: Tensor,
    right: Tensor,
) -> None:
    """Carry every entry of the core's old ``shape`` to the bases U left, V right."""
    entries = dict(_entries(optimizer, core, shape))
    mean = entries.get("grad_avg")  # of RMSprop, centered: square_avg - mean^2 is a variance
    for key, value in entries.items():
        sides = left.to(value.dtype), right.to(value.dtype)
        if key == "square_avg" and mean is not None:
            variance = (value - mean.square()).clamp_min_(0)
            moved = transport_second(variance, *sides) + transport_first(mean, *sides).square()
        elif key in SECOND_MOMENTS:
            moved = transport_second(value, *sides)
        elif key in ROOTS:
            moved = transport_second(value.square(), *sides).sqrt_()
        else:
            moved = transport_first(value, *sides)
        optimizer.state[core][key] = moved


def _entries(
    optimizer: torch.optim.Optimizer, core: nn.Parameter, shape: torch.Size
) -> list[tuple[str, Tensor]]:
    """The entries of a core's state that have its shape; counters do not. Creates nothing."""
    if core not in optimizer.state:
        return []
    return [
        (key, value)
        for key, value in optimizer.state[core].items()
        if isinstance(value, Tensor) and value.shape == shape
    ]
