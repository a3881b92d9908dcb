"""Layers of two thin factors, W = factor_out @ factor_in: what inference and sharing need.

Names and shapes of the factors are those that the conversion method writes into its files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class FactoredLinear(nn.Module):
    """Y = X factor_in^T factor_out^T + b.

    Args:
        factor_out: ``(n, r)``.
        factor_in: ``(r, m)``.
        bias: ``(n,)`` or None.
    """

    bias: nn.Parameter | None

    def __init__(self, factor_out: Tensor, factor_in: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.factor_out = nn.Parameter(factor_out)
        self.factor_in = nn.Parameter(factor_in)
        self.register_parameter("bias", None if bias is None else _parameter(bias))

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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., m)`` to ``(..., n)``."""
        return functional.linear(functional.linear(x, self.factor_in), self.factor_out, self.bias)

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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., m)`` to ``(..., n)``."""
        a = functional.linear(x, self.factor_out.mT)
        return functional.linear(a, self.factor_in.mT, self.bias)


class FactoredConv2d(nn.Module):
    """A convolution with r output channels, then a 1 x 1 convolution.

    Args:
        like: the original convolution, whose stride, padding, dilation and groups stay.
        factor_out: ``(C_out, r, 1, 1)``, r per group.
        factor_in: ``(g r, C_in / g, kh, kw)``.
        bias: ``(C_out,)`` or None.
    """

    bias: nn.Parameter | None

    def __init__(
        self, like: nn.Conv2d, factor_out: Tensor, factor_in: Tensor, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.factor_out = nn.Parameter(factor_out)
        self.factor_in = nn.Parameter(factor_in)
        self.register_parameter("bias", None if bias is None else _parameter(bias))
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

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, C_in, H, W)`` to the output of the convolution."""
        x = padded(x, self.outer_padding, self.padding_mode)
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


def _parameter(bias: Tensor) -> nn.Parameter:
    return bias if isinstance(bias, nn.Parameter) else nn.Parameter(bias)
