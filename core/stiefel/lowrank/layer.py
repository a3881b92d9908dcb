"""What every layer with weight W = U S V^T shares: storage, exchange of factors, persistence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.product import Tape
from stiefel.lowrank.steps import Factors
from stiefel.replacing import exchange_data


class LowRankLayer(nn.Module):
    """A layer whose weight, read as a matrix, is U S V^T.

    S is the Parameter that an optimizer sees. U and V are buffers: no optimizer, weight decay or
    gradient clipping ever touches them, so their columns stay orthonormal. When the rank
    changes, S keeps its identity and only its storage is exchanged; optimizers need no surgery.
    Storage has exactly the size of the active rank.

    ``U (n, r)``, ``S (r, r)``, ``V (m, r)``; grouped layers carry a leading group dimension.

    A layer may also be dense for a while (``is_dense``): S is then the n x m weight itself and
    the bases are empty. Entering factors later exchanges storage only.
    """

    U: Tensor
    V: Tensor
    bias: nn.Parameter | None

    def __init__(self, factors: Factors, bias: Tensor | nn.Parameter | None) -> None:
        super().__init__()
        self.register_buffer("U", factors.left)
        self.S = nn.Parameter(factors.core)
        self.register_buffer("V", factors.right)
        if bias is None or isinstance(bias, nn.Parameter):
            self.register_parameter("bias", bias)
        else:
            self.bias = nn.Parameter(bias)
        # An integrator hangs a tape here while the bases' gradients are wanted.
        self.tape: Tape | None = None

    @property
    def rank(self) -> int:
        """Number of active columns; the larger of the two while an augmented core is not square."""
        return min(self.S.shape[-2:]) if self.is_dense else max(self.S.shape[-2:])

    @property
    def is_dense(self) -> bool:
        """Whether S still holds the whole weight."""
        return self.U.shape[-1] == 0

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(n, m) of the matrix, per group."""
        return self.U.shape[-2], self.V.shape[-2]

    @property
    def weight(self) -> Tensor:
        """The dense weight in the original layer's shape, computed anew: n m r flops.

        For exports and for code that inspects ``weight``; a training step never asks for it.
        """
        matrix = self.S if self.is_dense else self.U @ self.S @ self.V.mT
        return matrix.reshape(self.weight_shape())

    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the dense layer's weight."""
        return self.matrix_shape

    @property
    def factors(self) -> Factors:
        """The present factors; views, not copies."""
        return Factors(self.U, self.S.detach(), self.V)

    @torch.no_grad()
    def set_factors(self, factors: Factors) -> None:
        """Exchange the factors; S keeps its identity as a Parameter, its gradient is dropped."""
        rows, columns = factors.left.shape[-1], factors.right.shape[-1]
        if factors.core.shape[-2:] != (rows, columns) or (
            (factors.left.shape[-2], factors.right.shape[-2]) != self.matrix_shape
        ):
            raise InvalidInputError(
                f"factors {tuple(factors.left.shape)}, {tuple(factors.core.shape)}, "
                f"{tuple(factors.right.shape)} do not fit a {self.matrix_shape} matrix",
                code="factor_shapes",
            )
        self.U, self.V = factors.left, factors.right
        exchange_data(self.S, factors.core)

    @torch.no_grad()
    def set_dense(self, matrix: Tensor) -> None:
        """Hold the whole weight, as a matrix ``([g,] n, m)``; the bases become empty."""
        if matrix.shape[-2:] != self.matrix_shape:
            raise InvalidInputError(
                f"a {tuple(matrix.shape)} weight does not fit a {self.matrix_shape} layer",
                code="factor_shapes",
            )
        self.U, self.V = self.U[..., :0].clone(), self.V[..., :0].clone()
        exchange_data(self.S, matrix)

    def corner(self, tape: Tape, new_left: Tensor, new_right: Tensor) -> Tensor:
        """Return new_left^T G new_right from the tape, without forming G."""
        raise TypeError(f"{type(self).__name__} does not define its corner product")

    def parameter_count(self) -> int:
        """Numbers an inference copy stores: r (n + m) with U S merged, and the bias."""
        n, m = self.matrix_shape
        groups = self.U.shape[0] if self.U.ndim > 2 else 1
        bias = 0 if self.bias is None else self.bias.numel()
        if self.is_dense:
            return self.S.numel() + bias
        return groups * min(self.S.shape[-2:]) * (n + m) + bias

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adopt the ranks of the checkpoint before the ordinary, strict loading copies it."""
        if all(isinstance(state_dict.get(prefix + name), Tensor) for name in "USV"):
            left, core, right = (state_dict[prefix + name] for name in "USV")
            fits = (
                left.shape[:-1] == self.U.shape[:-1]
                and right.shape[:-1] == self.V.shape[:-1]
                and core.shape[:-2] == self.S.shape[:-2]
                and core.shape[-2:]
                in ((left.shape[-1], right.shape[-1]), (left.shape[-2], right.shape[-2]))
            )
            if fits:
                self.U, self.V = self.U.new_empty(left.shape), self.V.new_empty(right.shape)
                exchange_data(self.S, self.S.new_empty(core.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def compute_copies(layer: LowRankLayer, x: Tensor) -> tuple[Tensor, Factors, Tensor | None]:
    """Return input, factors and bias in the dtype of the computation.

    Under autocast the float32 masters are rounded to copies; gradients come back to the masters.
    What is float64 stays so, as torch has it.
    """
    factors, bias = Factors(layer.U, layer.S, layer.V), layer.bias
    if not torch.is_autocast_enabled(x.device.type):
        return x, factors, bias
    dtype = torch.get_autocast_dtype(x.device.type)
    copies = Factors(*(_rounded(part, dtype) for part in factors))
    return _rounded(x, dtype), copies, None if bias is None else _rounded(bias, dtype)


def _rounded(part: Tensor, dtype: torch.dtype) -> Tensor:
    return part if part.dtype == torch.float64 else part.to(dtype)


def recording(layer: LowRankLayer) -> Tape | None:
    """The tape, when a backward pass may follow; in evaluation mode too, as ``grad`` would be."""
    return layer.tape if torch.is_grad_enabled() else None
