"""Loss and accuracy over the test examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stiefel.models.signature import Signature
from stiefel.training.data.dataset import Dataset


@dataclass(frozen=True)
class Evaluation:
    """Means over the test examples; ``accuracy`` is None for regression.

    For answers at every step, accuracy counts steps.
    """

    loss: float
    accuracy: float | None

    def better_than(self, other: Evaluation) -> bool:
        """Whether this is the one to keep: higher accuracy, at equal accuracy lower loss."""
        if self.accuracy is None or other.accuracy is None or self.accuracy == other.accuracy:
            return self.loss < other.loss
        return self.accuracy > other.accuracy

    def values(self) -> dict[str, float]:
        """As points of series."""
        values = {"test_loss": self.loss}
        return values if self.accuracy is None else values | {"test_accuracy": self.accuracy}


def loss_of(
    answer: Tensor, target: Tensor, signature: Signature, *, label_smoothing: float = 0.0
) -> Tensor:
    """Mean squared error for regression, else cross-entropy.

    Args:
        answer: (B, outputs), or (B, T, outputs) for answers at every step.
        target: (B,) or (B, T) classes, or (B,) floats.
        signature: tells which.
        label_smoothing: share of the target spread over all classes.
    """
    if signature.regression:
        return nn.functional.mse_loss(answer.squeeze(-1), target)
    return nn.functional.cross_entropy(
        answer.flatten(0, -2), target.flatten(), label_smoothing=label_smoothing
    )


@torch.no_grad()
def evaluate(
    network: nn.Module, dataset: Dataset, *, batch_size: int, device: torch.device
) -> Evaluation:
    """One pass over the test examples in evaluation mode; the mode is restored."""
    training = network.training
    network.eval()
    loss = torch.zeros((), device=device, dtype=torch.float64)
    hits = torch.zeros((), device=device, dtype=torch.int64)
    count = 0
    for x, y in dataset.test(batch_size=batch_size):
        x, y = x.to(device), y.to(device)
        answer = network(x)
        loss += loss_of(answer, y, dataset.signature).double() * y.numel()
        count += y.numel()
        if not dataset.signature.regression:
            hits += (answer.argmax(dim=-1) == y).sum()
    network.train(training)
    accuracy = None if dataset.signature.regression else hits.item() / count
    return Evaluation(loss.item() / count, accuracy)
