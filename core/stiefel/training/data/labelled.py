"""Labelled examples: order, scaling, augmentation, and images read as sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.models.signature import Signature
from stiefel.specs.data import PADDED_BYTES, LabelledData
from stiefel.specs.data_facts import check_use
from stiefel.training.data.dataset import Batch, generator
from stiefel.training.data.rows import Rows

SCALING_SAMPLE = 8192  # examples from which mean and deviation are estimated


@dataclass(frozen=True)
class Split:
    """Examples and their labels: (count,) int64 classes or float32 targets."""

    rows: Rows
    labels: Tensor
    indices: NDArray[np.int64]


class LabelledDataset:
    """Train and test splits of uploaded examples.

    Floats are standardised per channel (images) or per feature (vectors) with the mean and
    deviation of the first examples of the training split.
    """

    def __init__(self, spec: LabelledData, train: Split, test: Split, *, seed: int) -> None:
        self._spec, self._seed = spec, seed
        self._train, self._test = train, test
        self._scale = None if train.rows.tokens else _scaling(train)
        self.signature = _signature(spec, train, test)
        self._permutation = _permutation(spec, train.rows.shape)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Full batches; a training set smaller than a batch makes one."""
        return max(1, len(self._train.indices) // batch_size)

    def train(self, *, epoch: int, first: int, batch_size: int) -> Iterator[Batch]:
        """Shuffled by (seed, epoch); augmented by (seed, epoch, batch)."""
        count = len(self._train.indices)
        order = torch.randperm(count, generator=generator(self._seed, epoch)).numpy()
        for index in range(first, self.batches_per_epoch(batch_size)):
            chosen = self._train.indices[order[index * batch_size : (index + 1) * batch_size]]
            x, y = self._load(self._train, chosen)
            if self._spec.augment != "none":
                x = _augment(x, self._spec, generator(self._seed, epoch, index))
            yield Batch(self._present(x), y)

    def test(self, *, batch_size: int) -> Iterator[Batch]:
        """In file order."""
        indices = self._test.indices
        for start in range(0, len(indices), batch_size):
            x, y = self._load(self._test, indices[start : start + batch_size])
            yield Batch(self._present(x), y)

    def _load(self, split: Split, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        x, y = split.rows.take(indices.tolist()), split.labels[torch.from_numpy(indices)]
        if self._scale is None:
            return x.to(torch.int64), y
        mean, deviation = self._scale
        return x.to(torch.float32).sub_(mean).div_(deviation), y

    def _present(self, x: Tensor) -> Tensor:
        if not self._spec.as_sequence:
            return x
        steps = x.flatten(2).transpose(1, 2) if x.dim() == 4 else x.flatten(1).unsqueeze(-1)
        return steps if self._permutation is None else steps[:, self._permutation]


def _scaling(split: Split) -> tuple[Tensor, Tensor]:
    """Mean and deviation, by blocks: the sample of large images would not fit in memory."""
    chosen = split.indices[:SCALING_SAMPLE].tolist()
    over = (0, 2, 3) if len(split.rows.shape) == 3 else (0,)

    kept = [1, *([split.rows.shape[0], 1, 1] if len(over) == 3 else split.rows.shape)]
    numbers = len(chosen) * (prod(split.rows.shape[1:]) if len(over) == 3 else 1)

    def average(of: Callable[[Tensor], Tensor]) -> Tensor:
        # Added up in place: a list of small sums would lie between the blocks and keep their room.
        total = torch.zeros(kept, dtype=torch.float64)
        for block in split.rows.blocks(chosen):
            total += of(block.double()).sum(over, keepdim=True)
        return total / numbers

    mean = average(lambda block: block)
    deviation = average(lambda block: (block - mean).square()).sqrt()
    # A constant feature carries nothing; dividing by one keeps it at zero.
    deviation = torch.where(deviation > 0, deviation, torch.ones_like(deviation))
    return mean[0].float(), deviation[0].float()


def _signature(spec: LabelledData, train: Split, test: Split) -> Signature:
    shape = train.rows.shape
    if test.rows.shape != shape:
        raise InvalidInputError(
            f"test examples have shape {list(test.rows.shape)}, train examples {list(shape)}",
            code="data_mismatch",
            fix="give both files the same columns and image size",
            field="/data/test",
        )
    outputs = 1
    if spec.task == "classification":
        outputs = max(2, int(max(train.labels.max().item(), test.labels.max().item())) + 1)
    regression = spec.task == "regression"
    check_use(spec, tokens=train.rows.tokens, images=len(shape) == 3)
    if train.rows.tokens:
        return Signature("tokens", shape, outputs, vocabulary=PADDED_BYTES, regression=regression)
    kind: Literal["image", "vector", "sequence"] = "image" if len(shape) == 3 else "vector"
    if spec.as_sequence:
        channels = shape[0] if kind == "image" else 1
        kind, shape = "sequence", (prod(shape) // channels, channels)
    return Signature(kind, shape, outputs, regression=regression)


def _permutation(spec: LabelledData, shape: tuple[int, ...]) -> Tensor | None:
    if spec.permute is None:
        return None
    steps = prod(shape[1:] if len(shape) == 3 else shape)
    return torch.randperm(steps, generator=generator(spec.permute))


def _augment(x: Tensor, spec: LabelledData, source: torch.Generator) -> Tensor:
    """Shift each image by up to ``augment_pixels`` (edges repeat); ``flip_shift`` also mirrors."""
    batch, _, height, width = x.shape
    if spec.augment == "flip_shift":
        mirrored = torch.rand(batch, generator=source) < 0.5
        x = torch.where(mirrored[:, None, None, None], x.flip(-1), x)
    most = spec.augment_pixels
    dy, dx = torch.randint(-most, most + 1, (2, batch, 1), generator=source)
    rows = (torch.arange(height) + dy).clamp(0, height - 1)
    columns = (torch.arange(width) + dx).clamp(0, width - 1)
    images = torch.arange(batch)[:, None, None]
    return x.transpose(0, 1)[:, images, rows[:, :, None], columns[:, None, :]].transpose(0, 1)
