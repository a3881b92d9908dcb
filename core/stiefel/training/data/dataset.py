"""What the training loop asks of data.

The order of examples is a pure function of (seed, epoch), so that the position in the data is two
integers and a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stiefel.models.signature import Signature


class Batch(NamedTuple):
    """Inputs (B, ...) and targets: (B,) classes, (B, T) classes per step, or (B,) floats."""

    x: Tensor
    y: Tensor


class Dataset(Protocol):
    """Training and test examples."""

    @property
    def signature(self) -> Signature:
        """Shapes and task."""

    def batches_per_epoch(self, batch_size: int) -> int:
        """Number of full training batches in one epoch."""

    def train(self, *, epoch: int, first: int, batch_size: int) -> Iterator[Batch]:
        """Training batches ``first``, ``first + 1``, ... of ``epoch``."""

    def test(self, *, batch_size: int) -> Iterator[Batch]:
        """All test examples, once, in a fixed order."""


def generator(*seeds: int) -> torch.Generator:
    """A CPU generator that is a function of ``seeds`` alone."""
    return torch.Generator().manual_seed(mix(*seeds))


def mix(*seeds: int) -> int:
    """One seed from several, each of which changes all of it (the splitmix64 finaliser)."""
    state = 0x9E3779B97F4A7C15
    for seed in seeds:
        state = (state + seed + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state & 0x7FFFFFFFFFFFFFFF
