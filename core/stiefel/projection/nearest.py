"""The nearest matrix with orthonormal columns (or rows), in closed form.

For W = U Sigma V^H the minimiser of ||W - s Q||_F over all such Q is the polar factor U V^H,
whatever s > 0. Over rotations (det Q = +1) of a real square W with det W < 0 the least singular
direction is turned round, and the squared distance at s = 1 grows by 4 sigma_min.

Source: Kabsch, Acta Cryst. A32, 1976; Higham, Functions of Matrices, SIAM 2008, section 8.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import polar_factor
from stiefel.linalg.truncated_svd import widened

Scale = Literal["none", "mean"]


@dataclass(frozen=True)
class NearestUnitary:
    """The factor, its gain, and how far the input is from them."""

    factor: Tensor  # (n, m) like the input: orthonormal columns, or rows where n < m
    gain: float  # s: 1, or the mean singular value
    distance: float  # ||W - s Q||_F, measured in float64
    optimum: float  # the least distance over both determinants, at the same s
    defect: float  # of the factor
    turned: bool  # the least singular direction was turned for the determinant


def nearest_unitary(
    w: Tensor, *, determinant: Literal[1] | None = None, scale: Scale = "none"
) -> NearestUnitary:
    """Return the nearest matrix with orthonormal columns to ``w``, or rows where it is wide.

    Args:
        w: ``(n, m)`` real or complex; half precision is computed in float32. A convolution kernel
            comes flattened to ``(channels out, channels in * height * width)``.
        determinant: 1 asks for a rotation: only square real matrices are constrained.
        scale: ``mean`` fits ``s Q`` with s the mean singular value, which is the least-squares
            scale; ``none`` keeps s = 1.

    Raises:
        InvalidInputError: not a matrix, non-finite entries, or ``mean`` of a zero matrix.
    """
    tall, wide = oriented(w)
    nearest, defect = polar_factor(tall)[:2]
    gain = fitted_gain(tall, nearest, scale)
    turned = determinant == 1 and not w.is_complex() and is_reflection(nearest)
    factor = turn_least(tall) if turned else nearest
    optimum = _distance(tall, nearest, gain)
    distance = _distance(tall, factor, gain) if turned else optimum
    return NearestUnitary(
        factor.mH if wide else factor, gain, distance, optimum, float(defect), turned
    )


def oriented(w: Tensor) -> tuple[Tensor, bool]:
    """Return ``w`` as a tall matrix of at least float32, and whether it was transposed."""
    if w.ndim != 2:
        raise InvalidInputError(
            f"a matrix is needed, got shape {tuple(w.shape)}",
            fix="flatten a convolution kernel to (channels out, the rest)",
        )
    if w.dtype in (torch.float16, torch.bfloat16):
        w = w.float()
    wide = w.shape[0] < w.shape[1]
    return (w.mH if wide else w), wide


def is_reflection(factor: Tensor) -> bool:
    """Tell whether a square real matrix has a negative determinant; False for tall ones.

    The sign comes from the logarithmic determinant: the product of the pivots of an orthogonal
    matrix of a few hundred columns underflows on its way in float32.
    """
    square = factor.shape[-2] == factor.shape[-1]
    return square and factor.numel() > 0 and bool(torch.linalg.slogdet(factor).sign < 0)


def fitted_gain(x: Tensor, factor: Tensor, scale: Scale) -> float:
    """Return the s of the least ``||X - s Q||_F``: the mean singular value, or 1."""
    p = x.shape[-1]
    if scale == "none" or not p:
        return 1.0
    nuclear = torch.linalg.vecdot(widened(factor).flatten(), widened(x).flatten()).real
    gain = float(nuclear) / p
    if gain == 0.0:
        raise InvalidInputError(
            "a zero matrix has no mean singular value to keep",
            code="zero_matrix",
            fix='exclude the tensor or use scale "none"',
        )
    return gain


def turn_least(x: Tensor) -> Tensor:
    """Return the polar factor with its least singular direction turned."""
    left, sigma, right = torch.linalg.svd(x, full_matrices=False)
    signs = torch.ones_like(sigma)
    signs[-1] = -1
    turned: Tensor = (left * signs) @ right
    return turned


def _distance(x: Tensor, factor: Tensor, gain: float) -> float:
    # Not by |X|^2 - 2 s sum sigma + s^2 p, which keeps only half of the digits near a frame.
    return float(torch.linalg.vector_norm(widened(x) - gain * widened(factor)))
