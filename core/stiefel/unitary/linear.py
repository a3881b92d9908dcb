"""Linear layers with orthogonal or unitary weights, whose gradient is never formed when thin."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from stiefel.destination import destination
from stiefel.errors import InvalidInputError
from stiefel.kept import own
from stiefel.linalg.precision import products_are_whole
from stiefel.unitary import handover
from stiefel.unitary.gradients import Gradient
from stiefel.unitary.initialisation import haar_
from stiefel.unitary.options import check_dtype
from stiefel.unitary.rank_k_update import Products


class _FrameProduct(torch.autograd.Function):
    """``y = x W^T`` for rows x; in backward, factors ``a = delta^T, b = x^T`` instead of a^T b."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        y = functional.linear(x, W)
        ctx.save_for_backward(x, W, y)
        ctx.parameter = W
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        x, W, y = ctx.saved_tensors
        grad_x = delta @ W.conj().to(delta.dtype)
        rows, steps = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
        goes = destination(ctx, 1)
        if goes == "nowhere":
            return grad_x.to(x.dtype), None
        if goes == "caller" or not handover.accepts(ctx.parameter, rows.shape[0]):
            return grad_x.to(x.dtype), (steps.mT @ rows.conj().to(steps.dtype)).to(W.dtype)
        if not len(rows):
            return grad_x.to(x.dtype), None
        a, b = steps.mT.to(W.dtype), own(rows).mT.to(W.dtype)
        # Products of half precision or TF32 would carry their rounding into W.
        exact = y.dtype == W.dtype == grad_x.dtype and products_are_whole()
        known = Products(y.reshape(-1, y.shape[-1]).mT, grad_x.reshape(-1, W.shape[-1]).mT)
        handover.put(ctx.parameter, Gradient(a, b, known if exact else None))
        return grad_x.to(x.dtype), None


class _TransposedProduct(torch.autograd.Function):
    """``y = x W`` for rows x: a wide weight, stored as its transpose, a tall frame."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor) -> Tensor:
        ctx.save_for_backward(x, W)
        ctx.parameter = W
        return functional.linear(x, W.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor, Tensor | None]:
        x, W = ctx.saved_tensors
        grad_x = delta @ W.mH.to(delta.dtype)
        rows, steps = x.reshape(-1, x.shape[-1]), delta.reshape(-1, delta.shape[-1])
        goes = destination(ctx, 1)
        if goes == "nowhere":
            return grad_x.to(x.dtype), None
        if goes == "caller" or not handover.accepts(ctx.parameter, rows.shape[0]):
            return grad_x.to(x.dtype), (rows.mH.to(steps.dtype) @ steps).to(W.dtype)
        if not len(rows):
            return grad_x.to(x.dtype), None
        handover.put(ctx.parameter, Gradient(own(rows).mH.to(W.dtype), steps.mH.to(W.dtype)))
        return grad_x.to(x.dtype), None


class OrthogonalLinear(nn.Module):
    """``y = x W^T + bias`` with W real and orthonormal in its columns or rows.

    Args:
        in_features, out_features: sizes. Square: W is orthogonal. More outputs: an isometry,
            ``W^T W = I``. More inputs: a contraction with ``W W^T = I``.
        bias: whether to add a (Euclidean) bias.
        dtype: float32 or float64.

    Raises:
        InvalidInputError: another dtype.

    ``frame`` is the parameter for ``ProjUNN``, ``(max, min)`` of the sizes: W, or W^T where there
    are more inputs. With that optimizer, and batch times time at most a quarter of the
    smaller size, backward hands over factors and ``frame.grad`` stays None. ``gain``, a buffer,
    scales the output; 1 unless ``to_unitary`` kept the scale of an old weight.
    """

    default_dtype = torch.float32
    replaces_transposed = False  # whether the layer in whose place it stands stored W^T

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        dtype = dtype or self.default_dtype
        check_dtype(dtype, type(self).__name__)
        if dtype.is_complex != self.default_dtype.is_complex:
            raise InvalidInputError(
                f"{type(self).__name__} of {dtype}",
                fix="OrthogonalLinear is real, UnitaryLinear complex",
            )
        sizes = sorted((in_features, out_features), reverse=True)
        frame = torch.empty(*sizes, dtype=dtype, device=device)
        self.frame = nn.Parameter(haar_(frame, generator=generator))
        self.bias = nn.Parameter(frame.new_zeros(out_features)) if bias else None
        self.register_buffer("gain", torch.ones((), dtype=frame.real.dtype, device=device))

    @property
    def transposed(self) -> bool:
        """Whether ``frame`` is the transpose of the weight."""
        return self.in_features > self.out_features

    @property
    def weight(self) -> Tensor:
        """What the layer applies, ``gain`` W ``(out_features, in_features)``, computed anew.

        Torch's attention and encoder layers take it past ``forward``.
        """
        W = self.frame.mT if self.transposed else self.frame
        return W * self.get_buffer("gain")

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., in_features)`` to ``(..., out_features)``."""
        y = self._product(input) * self.get_buffer("gain")
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _product(self, x: Tensor) -> Tensor:
        """``x W^T``; with ordinary operations where a dense gradient will follow."""
        if not handover.accepts(self.frame, x.shape[:-1].numel()):
            return functional.linear(x, self.frame.mT if self.transposed else self.frame)
        product = _TransposedProduct if self.transposed else _FrameProduct
        y: Tensor = product.apply(x, self.frame)  # type: ignore[no-untyped-call]
        return y

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}"


class UnitaryLinear(OrthogonalLinear):
    """``OrthogonalLinear`` with complex weights: inputs, outputs and bias are complex."""

    default_dtype = torch.complex64


def manifold_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a model that belong to ``ProjUNN``: the frames of its layers."""
    found = []
    for module in model.modules():
        found += [p for name, p in module.named_parameters(recurse=False) if is_frame(name)]
    return list(dict.fromkeys(found))


def euclidean_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return all other parameters, for an ordinary optimizer."""
    frames = {id(p) for p in manifold_parameters(model)}
    return [p for p in model.parameters() if id(p) not in frames]


def is_frame(name: str) -> bool:
    """Whether a parameter's own name marks it as a point of the manifold."""
    return name == "frame" or name.startswith("frame_")
