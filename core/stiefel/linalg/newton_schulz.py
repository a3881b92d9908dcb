"""Newton-Schulz steps of adaptive order: the polar factor of a nearly orthonormal matrix.

With E = X^H X - I the polar factor is X (I + E)^(-1/2). One step multiplies X by a truncated
binomial series, of order 1 (Newton-Schulz), 2 or 4. Order 4 costs one n x p product for E, two
p x p products for the series and one n x p product to apply it; the error falls from e to e^5.

Source: Higham, Functions of Matrices, SIAM 2008, section 8.3 and problem 8.20.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from stiefel.linalg.parts import gram_residual

# Coefficients of (1 + e)^(-1/2) = 1 + c1 e + c2 e^2 + c3 e^3 + c4 e^4 + c5 e^5 ...
C1, C2, C3, C4, C5 = -1 / 2, 3 / 8, -5 / 16, 35 / 128, -63 / 256


class Iterate(NamedTuple):
    """An approximate polar factor with the residual that tells how good it is."""

    factor: Tensor  # (..., n, p)
    residual: Tensor  # (..., p, p)  X^H X - I
    defect: Tensor  # (...,)
    iterations: int


def newton_schulz(
    x: Tensor,
    residual: Tensor,
    bound: float,
    *,
    limit: int,
    reach: float = math.inf,
    scale: Tensor | None = None,
) -> Iterate | None:
    """Step until every defect is at most ``bound``, or ``limit`` steps were made.

    Args:
        x: ``(..., n, p)`` with singular values in (0, sqrt(3)).
        residual: ``X^H X - I`` of the scaled x, which the caller has formed for its choice.
        bound: on ``||X^H X - I||_F``.
        limit: most steps; the caller judges the defect of what comes back.
        reach: give up, with None, if the spectral norm of ``residual`` may exceed this.
        scale: ``(..., 1, 1)``, a factor on ``x`` that is cheaper to put on the first series.
    """
    defect = torch.linalg.matrix_norm(residual)
    largest = _largest(defect)
    steps = 0
    # A NaN compares false and ends the loop: an overflow never becomes better.
    while steps < limit and largest > bound:
        series = _series(residual, largest, bound, math.inf if steps else reach)
        if series is None:
            return None
        x = x @ (series if scale is None else series.mul_(scale))
        scale = None
        residual = gram_residual(x)
        defect = torch.linalg.matrix_norm(residual)
        largest = _largest(defect)
        steps += 1
    return Iterate(x if scale is None else x * scale, residual, defect, steps)


def _largest(values: Tensor) -> float:
    return float(values.max() if values.ndim else values)


def _series(e: Tensor, defect: float, bound: float, reach: float) -> Tensor | None:
    """The shortest series whose next defect is under the bound, else the longest one."""
    # The next defect is 2 |c_(m+1)| ||E^(m+1)||_F; half of the bound is left to rounding.
    if 2 * C2 * defect * defect <= bound / 2:
        return _plus_identity(C1 * e)
    square = e @ e
    norm = _largest(torch.linalg.matrix_norm(square))
    # sqrt(||E^2||_F) bounds the spectral norm of E far more tightly than ||E||_F does.
    if math.sqrt(norm) > reach:
        return None
    if 2 * -C3 * norm * math.sqrt(norm) <= bound / 2:
        return _plus_identity(square.mul_(C2).add_(e, alpha=C1))
    series = (C3 * e).add_(square, alpha=C4) @ square
    series.add_(e, alpha=C1).add_(square, alpha=C2)
    return _plus_identity(series)


def _plus_identity(a: Tensor) -> Tensor:
    a.diagonal(dim1=-2, dim2=-1).add_(1)
    return a
