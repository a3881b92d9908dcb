"""Layers of two thin factors, W = factor_out @ factor_in: what inference and sharing need.

Names and shapes of the factors are those that the conversion method writes into its files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from stiefel.replacing import exchange_data


class Factored(nn.Module):
    """What the layers of two factors share; a state dict may bring another rank than theirs."""

    bias: nn.Parameter | None

    def __init__(self, factor_out: Tensor, factor_in: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.factor_out = nn.Parameter(factor_out)
        self.factor_in = nn.Parameter(factor_in)
        if bias is not None and not isinstance(bias, nn.Parameter):
            bias = nn.Parameter(bias)
        self.register_parameter("bias", bias)

    def fits(self, factor_out: Tensor, factor_in: Tensor) -> bool:
        """Whether these factors, of whatever rank, make a weight of this layer."""
        outer, inner = self.factor_out, self.factor_in
        return (
            (factor_out.ndim, factor_in.ndim) == (outer.ndim, inner.ndim)
            and (factor_out.shape[0], *factor_out.shape[2:]) == (len(outer), *outer.shape[2:])
            and factor_in.shape[1:] == inner.shape[1:]
            and len(factor_in) * outer.shape[1] == len(inner) * factor_out.shape[1]
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Adopt the rank of the checkpoint before the ordinary, strict loading copies it."""
        outer, inner = (state_dict.get(prefix + name) for name in ("factor_out", "factor_in"))
        if (
            isinstance(outer, Tensor)
            and isinstance(inner, Tensor)
            and outer.shape != self.factor_out.shape
            and self.fits(outer, inner)
        ):
            exchange_data(self.factor_out, self.factor_out.new_empty(outer.shape))
            exchange_data(self.factor_in, self.factor_in.new_empty(inner.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class FactoredLinear(Factored):
    """Y = X factor_in^T factor_out^T + b.

    Args:
        factor_out: ``(n, r)``.
        factor_in: ``(r, m)``.
        bias: ``(n,)`` or None.
    """

    @property
    def in_features(self) -> int:
        """M."""
        return self.factor_in.shape[1]

    @property
    def out_features(self) -> int:
        """N."""
        return self.factor_out.shape[0]

    @property
    def weight(self) -> Tensor:
        """The dense weight, computed anew; for code that inspects it."""
        return self.factor_out @ self.factor_in

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., m)`` to ``(..., n)``."""
        a = functional.linear(input, self.factor_in)
        return functional.linear(a, self.factor_out, self.bias)

    def extra_repr(self) -> str:
        """What ``print(model)`` shows."""
        return f"{self.in_features} -> {self.factor_in.shape[0]} -> {self.out_features}"


class FactoredConv1D(FactoredLinear):
    """The same where the layer stored W^T: the factors are those of the stored matrix.

    Args:
        factor_out: ``(m, r)``.
        factor_in: ``(r, n)``.
        bias: ``(n,)`` or None.
    """

    @property
    def in_features(self) -> int:
        """M."""
        return self.factor_out.shape[0]

    @property
    def out_features(self) -> int:
        """N."""
        return self.factor_in.shape[1]

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(..., m)`` to ``(..., n)``."""
        a = functional.linear(input, self.factor_out.mT)
        return functional.linear(a, self.factor_in.mT, self.bias)


class FactoredConv2d(Factored):
    """A convolution with r output channels, then a 1 x 1 convolution.

    Args:
        like: the original convolution, whose stride, padding, dilation and groups stay.
        factor_out: ``(C_out, r, 1, 1)``, r per group.
        factor_in: ``(g r, C_in / g, kh, kw)``.
        bias: ``(C_out,)`` or None.
    """

    def __init__(
        self, like: nn.Conv2d, factor_out: Tensor, factor_in: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__(factor_out, factor_in, bias)
        self.stride: Any = like.stride
        self.dilation: Any = like.dilation
        self.groups = like.groups
        self.in_channels, self.out_channels = like.in_channels, like.out_channels
        self.kernel_size: Any = like.kernel_size
        self.padding: Any = like.padding
        self.padding_mode = like.padding_mode
        self.outer_padding = outer_padding(like)

    @property
    def weight(self) -> Tensor:
        """The dense kernel, computed anew; for code that inspects it."""
        left = self.factor_out.reshape(self.groups, -1, self.factor_out.shape[1])
        right = self.factor_in.reshape(self.groups, left.shape[-1], -1)
        return (left @ right).reshape(self.out_channels, *self.factor_in.shape[1:])

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to the output of the convolution."""
        x = padded(input, self.outer_padding, self.padding_mode)
        padding = self.padding if self.outer_padding is None else 0
        a = functional.conv2d(
            x, self.factor_in, None, self.stride, padding, self.dilation, self.groups
        )
        return functional.conv2d(a, self.factor_out, self.bias, groups=self.groups)


def outer_padding(like: nn.Conv2d) -> tuple[int, ...] | None:
    """(left, right, top, bottom) where the kernel of convolution cannot pad so itself."""
    if isinstance(like.padding, str) or like.padding_mode != "zeros":
        return tuple(like._reversed_padding_repeated_twice)
    return None


def padded(x: Tensor, amounts: tuple[int, ...] | None, mode: str) -> Tensor:
    """``x`` with what :func:`outer_padding` asks for around it."""
    if amounts is None:
        return x
    return functional.pad(x, amounts, mode="constant" if mode == "zeros" else mode)


def product_of(factor_out: Tensor, factor_in: Tensor) -> Tensor:
    """The tensor that two factors stand for: ``(n, r, 1...)`` and ``(r, m, k...)``."""
    left = factor_out.reshape(factor_out.shape[0], -1)
    return (left @ factor_in.reshape(left.shape[1], -1)).reshape(len(left), *factor_in.shape[1:])


def balanced(left: Tensor, core: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Split U S V^T into factors of equal norm, (U P) sqrt(sigma) and sqrt(sigma) (V Q)^T."""
    wide = core.detach().to(torch.promote_types(core.dtype, torch.float32))
    P, sigma, Qh = (part.to(core.dtype) for part in torch.linalg.svd(wide, full_matrices=False))
    root = sigma.sqrt()
    return (left @ P) * root[..., None, :], root[..., :, None] * (Qh @ right.mT)
