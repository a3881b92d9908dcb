"""The fully connected layer with weight U S V^T."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from stiefel.lowrank.initial import drawn_factors, spectral_factors
from stiefel.lowrank.layer import LowRankLayer, compute_copies, recording
from stiefel.lowrank.product import (
    LinearProduct,
    MergedProduct,
    Tape,
    factored_product,
    linear_corner,
)
from stiefel.lowrank.steps import Factors

Evaluation = Literal["factored", "merged", "auto"]


class LowRankLinear(LowRankLayer):
    """Y = X V S^T U^T + b in place of ``nn.Linear``.

    Args:
        in_features: m.
        out_features: n.
        rank: r, 1 to min(n, m).
        bias: whether a bias is learned.
        evaluation: ``factored`` never forms a matrix of the dense weight's size; ``auto``
            takes the cheaper of the two by its flops.
        generator: source of the draw. The factors are those of the draw ``nn.Linear`` makes.
        device: where the factors live.
        dtype: float32 or float64.
    """

    transposed = False  # whether the layer in whose place it stands stored W^T

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        *,
        bias: bool = True,
        evaluation: Evaluation = "factored",
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        factors = drawn_factors(
            (out_features, in_features), rank, generator=generator, dtype=dtype, device=device
        )
        offset = None
        if bias:
            bound = 1 / math.sqrt(in_features)
            source = generator.device if generator is not None else device
            offset = torch.empty(out_features, dtype=dtype, device=source).uniform_(
                -bound, bound, generator=generator
            )
            offset = offset.to(device) if device is not None else offset
        super().__init__(factors, offset)
        self.evaluation: Evaluation = evaluation

    @classmethod
    def from_dense(
        cls,
        dense: nn.Linear,
        rank: int,
        *,
        keep_norm: bool = False,
        evaluation: Evaluation = "factored",
    ) -> LowRankLinear:
        """Return the layer whose weight is the best approximation of ``dense`` at ``rank``.

        The bias Parameter is taken over, not copied, so that optimizers that hold it stay right.
        """
        factors = spectral_factors(dense.weight, rank, keep_norm=keep_norm)
        return cls.from_factors(factors, dense.bias, evaluation=evaluation)

    @classmethod
    def from_factors(
        cls,
        factors: Factors,
        bias: Tensor | nn.Parameter | None,
        *,
        evaluation: Evaluation = "factored",
    ) -> LowRankLinear:
        """Return a layer around existing factors."""
        layer = cls.__new__(cls)
        LowRankLayer.__init__(layer, factors, bias)
        layer.evaluation = evaluation
        return layer

    @property
    def in_features(self) -> int:
        """M, the length of an input row."""
        return self.V.shape[-2]

    @property
    def out_features(self) -> int:
        """N, the length of an output row."""
        return self.U.shape[-2]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., m)`` to ``(..., n)``."""
        x, (U, S, V), bias = compute_copies(self, input)
        if not U.shape[-1]:
            return functional.linear(x, S, bias)
        rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
        tape = recording(self)
        y: Tensor
        if tape is not None:
            y = LinearProduct.apply(rows, U, S, V, bias, tape)  # type: ignore[no-untyped-call]
        elif self._merges(rows, U, V):
            y = MergedProduct.apply(rows, U, S, V, bias)  # type: ignore[no-untyped-call]
        else:
            y = factored_product(rows, U, S, V, bias)
        return y if x.ndim == 2 else y.reshape(*x.shape[:-1], y.shape[-1])

    def _merges(self, rows: Tensor, U: Tensor, V: Tensor) -> bool:
        if self.evaluation != "auto":
            return self.evaluation == "merged"
        (n, rank), m = U.shape, V.shape[0]
        return merged_is_cheaper(len(rows), n, m, rank, training=torch.is_grad_enabled())

    def corner(self, tape: Tape, new_left: Tensor, new_right: Tensor) -> Tensor:
        """See :meth:`LowRankLayer.corner`."""
        return linear_corner(tape, new_left, new_right)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"rank={self.rank}, bias={self.bias is not None}"
        )


def merged_is_cheaper(rows: int, n: int, m: int, rank: int, *, training: bool) -> bool:
    """Compare the multiplications of one pass through W = U S V^T with those through factors."""
    merge = rank * n * (rank + m)
    factored = rows * rank * (n + m + rank)
    if not training:
        return merge + rows * n * m < factored
    merged = merge + rows * (2 * n * m + rank * (n + m + rank))
    return merged < 2 * factored + rows * rank * rank
