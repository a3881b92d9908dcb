"""Tasks that are made on the fly: copying memory and the adding problem.

Source: Hochreiter and Schmidhuber 1997; encoding and sizes as in arXiv 2203.05483, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from stiefel.models.signature import Signature
from stiefel.specs.data import AddingProblem, CopyingMemory
from stiefel.training.data.dataset import Batch, generator


class CopyingMemoryData:
    """Inputs (B, delay + 2 length, symbols + 2) one-hot; targets (B, delay + 2 length).

    Classes: 0 blank, 1 ... symbols. The input alphabet has one more sign, "now answer".
    A network that has learnt nothing but blanks loses length ln(symbols) / (delay + 2 length).
    """

    def __init__(self, spec: CopyingMemory, *, seed: int) -> None:
        self._spec, self._seed = spec, seed
        steps = spec.delay + 2 * spec.length
        self.signature = Signature(
            "sequence", (steps, spec.symbols + 2), spec.symbols + 1, per_step=True
        )

    def batches_per_epoch(self, batch_size: int) -> int:
        """As the spec says, whatever the batch size."""
        return self._spec.batches_per_epoch

    def train(self, *, epoch: int, first: int, batch_size: int) -> Iterator[Batch]:
        """Fresh examples for every batch."""
        for index in range(first, self._spec.batches_per_epoch):
            yield self._batch(batch_size, generator(self._seed, epoch, index))

    def test(self, *, batch_size: int) -> Iterator[Batch]:
        """Ten batches that training never sees."""
        for index in range(10):
            yield self._batch(batch_size, generator(self._seed, 2**40, index))

    def _batch(self, size: int, source: torch.Generator) -> Batch:
        length, delay = self._spec.length, self._spec.delay
        words = torch.randint(1, self._spec.symbols + 1, (size, length), generator=source)
        steps = torch.zeros(size, delay + 2 * length, dtype=torch.int64)
        steps[:, :length] = words
        steps[:, length + delay - 1] = self._spec.symbols + 1  # "now answer"
        target = torch.zeros_like(steps)
        target[:, length + delay :] = words
        x = torch.nn.functional.one_hot(steps, self._spec.symbols + 2).float()
        return Batch(x, target)


class AddingProblemData:
    """Inputs (B, length, 2): a number in [0, 1) and a mark; targets (B,), the sum of the marked.

    Always answering 1 has a mean squared error of 1/6.
    """

    def __init__(self, spec: AddingProblem, *, seed: int) -> None:
        self._spec, self._seed = spec, seed
        self.signature = Signature("sequence", (spec.length, 2), 1, regression=True)

    def batches_per_epoch(self, batch_size: int) -> int:
        """Full batches in the training set."""
        return max(1, self._spec.train_examples // batch_size)

    def train(self, *, epoch: int, first: int, batch_size: int) -> Iterator[Batch]:
        """The training set in an order of its own for each epoch; examples are made when needed."""
        count = self.batches_per_epoch(batch_size)
        order = torch.randperm(count, generator=generator(self._seed, epoch))
        for index in order[first:].tolist():
            yield self._batch(batch_size, generator(self._seed, 2**41, index))

    def test(self, *, batch_size: int) -> Iterator[Batch]:
        """The test set, the last batch possibly smaller."""
        edges = [*range(0, self._spec.test_examples, batch_size), self._spec.test_examples]
        for index, (start, stop) in enumerate(pairwise(edges)):
            yield self._batch(stop - start, generator(self._seed, 2**40, index))

    def _batch(self, size: int, source: torch.Generator) -> Batch:
        length = self._spec.length
        numbers = torch.rand(size, length, generator=source)
        half = length // 2
        marks = torch.zeros(size, length)
        rows = torch.arange(size)
        for low, high in ((0, half), (half, length)):
            marks[rows, torch.randint(low, high, (size,), generator=source)] = 1.0
        target: Tensor = (numbers * marks).sum(dim=1)
        return Batch(torch.stack((numbers, marks), dim=-1), target)
