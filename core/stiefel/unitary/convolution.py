"""Convolution whose real operator is orthogonal: one unitary matrix per Fourier frequency."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.unitary.initialisation import haar_


class FourierConv2d(nn.Module):
    """Cyclic full-width convolution, an isometry of real images.

    A real operator needs ``W(-f) = conj W(f)``. So only independent frequencies are stored:
    the up to four that are their own negatives as real orthogonal matrices (``frame_real``), one
    of every other conjugate pair as a unitary one (``frame_complex``); the partner is tied.
    (Storing all columns of the real FFT, as the authors do, leaves pairs in the first and last
    column free to disagree, and the real operator is then no isometry.)

    Args:
        in_channels, out_channels: C = max of both. Fewer inputs are padded with zero channels, an
            isometry; fewer outputs are the first rows of a unitary, so that the operator's rows
            are orthonormal. No channel is repeated, no norm changes.
        size: height and width of the images.
        initialisation: ``identity`` or ``haar``.
        dtype: of the images, float32 or float64.

    Raises:
        InvalidInputError: another dtype.

    Caveat: cyclic. Pad and crop outside for other borders, which makes it 1-Lipschitz only.
    Cost: O(H W C^2) per image beside the FFTs; parameters H W C^2 reals.

    Source: Kiani et al., arXiv 2203.05483, sec. 4, with the pairing corrected.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        *,
        initialisation: Literal["identity", "haar"] = "identity",
        dtype: torch.dtype = torch.float32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if dtype not in (torch.float32, torch.float64):
            raise InvalidInputError(
                f"FourierConv2d of {dtype}",
                fix="float32 or float64; autocast runs other layers in half precision",
            )
        self.in_channels, self.out_channels, self.size = in_channels, out_channels, size
        channels = max(in_channels, out_channels)
        real, free, order, tied = _frequencies(*size)
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("tied", tied, persistent=False)
        frames = [
            torch.zeros(real, channels, channels, dtype=dtype),
            torch.zeros(free, channels, channels, dtype=dtype.to_complex()),
        ]
        for frame in frames:
            if initialisation == "haar":
                haar_(frame, generator=generator)
            else:
                frame += torch.eye(channels)
        self.frame_real = nn.Parameter(frames[0])
        # A 1 x 1 or 2 x 2 image has no complex frequency.
        self.frame_complex = nn.Parameter(frames[1]) if free else None

    def spectrum(self) -> Tensor:
        """Return the unitary of every frequency of the real FFT, (H, W // 2 + 1, C, C)."""
        parts = [torch.complex(self.frame_real, torch.zeros_like(self.frame_real))]
        if self.frame_complex is not None:
            parts.append(self.frame_complex)
            tied: Tensor = self.get_buffer("tied")
            parts.append(self.frame_complex[tied].conj())
        table = torch.cat(parts)
        height, width = self.size
        spectrum: Tensor = table[self.get_buffer("order")]
        return spectrum.view(height, width // 2 + 1, *table.shape[1:])

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(batch, in, H, W)`` to ``(batch, out, H, W)``."""
        if x.shape[-2:] != self.size or x.shape[1] != self.in_channels:
            raise InvalidInputError(
                f"expected {self.in_channels} channels of {self.size}, got {tuple(x.shape)}",
                fix="resize the images, or build the layer for their size",
            )
        # Zero channels contribute nothing, and channels beyond out_channels are dropped.
        W = self.spectrum()[..., : self.out_channels, : self.in_channels]
        spectrum = torch.fft.rfft2(x).permute(2, 3, 0, 1)
        y = spectrum @ W.mT
        out: Tensor = torch.fft.irfft2(y.permute(2, 3, 0, 1), s=self.size)
        return out

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{self.in_channels}, {self.out_channels}, size={self.size}"


def _frequencies(height: int, width: int) -> tuple[int, int, Tensor, Tensor]:
    """Return how many frequencies are self-conjugate and free, and where each one's matrix is.

    The third result gives, per entry of the real FFT, a place in the list of real, then free,
    then tied matrices; the fourth, per tied matrix, the free one it is the conjugate of.
    """
    real: list[tuple[int, int]] = []
    free: list[tuple[int, int]] = []
    partners: list[tuple[int, int]] = []
    for row in range(height):
        for column in range(width // 2 + 1):
            mirror = (-row % height, -column % width)
            if mirror == (row, column):
                real.append(mirror)
            elif mirror[1] == column and mirror[0] < row:
                partners.append((row, column))
            else:
                free.append((row, column))
    place = {f: i for i, f in enumerate(real + free + partners)}
    order = [place[row, column] for row in range(height) for column in range(width // 2 + 1)]
    mirrors = [place[-row % height, -column % width] for row, column in partners]
    tied = torch.tensor([place - len(real) for place in mirrors], dtype=torch.long)
    return len(real), len(free), torch.tensor(order), tied
