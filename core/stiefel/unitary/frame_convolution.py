"""The convolution of "Deep unitary convolutional neural networks": a frame for a kernel.

Source: Chang, Wang, arXiv 2102.11855. The kernel, flattened to ``out x (in kh kw)``, has
orthonormal rows or columns. That is no isometry of images (only a 1 x 1 kernel with stride 1 is):
for that, see ``FourierConv2d``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from stiefel.unitary.initialisation import haar_
from stiefel.unitary.options import check_dtype


class FrameConv2d(nn.Module):
    """2-d convolution whose flattened kernel is a frame, a parameter of ``ProjUNN``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, bias: as in
            ``torch.nn.Conv2d``, without groups.
        normalise: divide the output by its norm over channels at each pixel where the
            kernel contracts (fewer outputs than inputs), as the authors do in place of a
            normalisation layer.

        dtype: float32 or float64.

    ``frame`` is ``(max, min)`` of ``out`` and ``in kh kw``: the flattened kernel or its transpose.
    The exponential of the authors' Lie parameters, recomputed in every forward pass there, is
    not needed: the optimizer moves the frame itself. ``gain`` scales the output.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        normalise: bool = True,
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_dtype(dtype, "FrameConv2d")
        if isinstance(kernel_size, int):
            kernel_size = (kernel_size, kernel_size)
        self.in_channels, self.out_channels, self.kernel_size = (
            in_channels,
            out_channels,
            kernel_size,
        )
        self.stride, self.padding, self.dilation = stride, padding, dilation
        inside = in_channels * kernel_size[0] * kernel_size[1]
        self.contracts = out_channels < inside
        frame = torch.empty(max(inside, out_channels), min(inside, out_channels), dtype=dtype)
        self.frame = nn.Parameter(haar_(frame, generator=generator))
        self.bias = nn.Parameter(frame.new_zeros(out_channels)) if bias else None
        self.normalise = normalise and self.contracts
        self.register_buffer("gain", frame.new_ones(()))

    @property
    def weight(self) -> Tensor:
        """What the layer applies, ``gain`` times the kernel (out, in, kh, kw), computed anew."""
        flat = self.frame.mT if self.contracts else self.frame
        kernel = flat.reshape(self.out_channels, self.in_channels, *self.kernel_size)
        return kernel * self.get_buffer("gain")

    def forward(self, input: Tensor) -> Tensor:
        """Map ``(batch, in, H, W)`` as ``torch.nn.Conv2d`` does."""
        y = functional.conv2d(
            input,
            self.weight,
            self.bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
        )
        return functional.normalize(y, dim=1) if self.normalise else y
