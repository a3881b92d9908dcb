"""What data looks like to a network: enough to size its first and last layer. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Signature:
    """Shape of one example and of the answer to it.

    Attributes:
        kind: ``image`` (C, H, W) floats; ``vector`` (F,) floats; ``sequence`` (T, F) floats;
            ``tokens`` (T,) int64.
        shape: of one example, without the batch; for ``tokens`` (T,).
        outputs: number of classes, or 1 for regression.
        per_step: one answer per time step instead of one per example.
        vocabulary: number of token ids; 0 when the kind is not ``tokens``.
        regression: squared error on one number instead of cross-entropy.
    """

    kind: Literal["image", "vector", "sequence", "tokens"]
    shape: tuple[int, ...]
    outputs: int
    per_step: bool = False
    vocabulary: int = 0
    regression: bool = False
