"""Optimizer state of a core across changes of basis: the state lives on S and turns with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stiefel.lowrank.steps import pad_core, transport_first, transport_second

# Entries that average squares; every other entry of the core's shape is linear in the gradient.
SECOND_MOMENTS = frozenset({"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "exp_inf"})


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
    for key, value in _entries(optimizer, core, shape):
        move = transport_second if key in SECOND_MOMENTS else transport_first
        optimizer.state[core][key] = move(value, left.to(value.dtype), right.to(value.dtype))


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
