"""Polar decomposition X = U H. All functions batch over leading dimensions."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError, NotConvergedError
from stiefel.linalg.parts import gram_residual, orthogonality_defect

Algorithm = Literal["auto", "svd"]


class Polar(NamedTuple):
    """A polar factor and the evidence that it is one."""

    factor: Tensor  # (..., n, p)  U, with U^H U = I_p
    defect: Tensor  # (...,)       ||U^H U - I||_F, measured, not assumed
    iterations: int  # 0 for the SVD


def polar_factor(
    x: Tensor, *, algorithm: Algorithm = "auto", tolerance: float | None = None
) -> Polar:
    """Return the polar factor U, the point of St(n, p) nearest to ``x`` in Frobenius norm.

    Args:
        x: ``(..., n, p)`` with n >= p; real or complex. Half precision is computed, and the
            factor returned, in float32: rounding it is the caller's choice.
        algorithm: ``svd``, or ``auto`` to choose.
        tolerance: bound on the defect. Default: ``p * eps`` of the dtype, at least ``8 * eps``.

    Raises:
        InvalidInputError: n < p, or non-finite entries.
        NotConvergedError: the defect stayed above ``tolerance``.

    Source: Higham, Functions of Matrices, SIAM 2008, ch. 8.
    """
    x = _checked(x)
    bound = tolerance if tolerance is not None else default_tolerance(x)
    factor = _svd(x)
    defect = orthogonality_defect(factor)
    if bool((defect > bound).any()):
        raise NotConvergedError(
            f"orthogonality defect {float(defect.max()):.2e} stayed above {bound:.2e}",
            fix="raise the tolerance or pass float64",
        )
    return Polar(factor, defect, 0)


def default_tolerance(x: Tensor) -> float:
    """Return the bound on the defect of a factor: ``p * eps`` of the dtype, at least ``8 * eps``."""
    return max(8, x.shape[-1]) * torch.finfo(x.dtype).eps


def _checked(x: Tensor) -> Tensor:
    if x.ndim < 2 or x.shape[-2] < x.shape[-1]:
        raise InvalidInputError(
            f"polar_factor needs (..., n, p) with n >= p, got {tuple(x.shape)}",
            code="wide_matrix",
            fix="pass the conjugate transpose and transpose the factor back",
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if not bool(torch.isfinite(x).all()):
        raise InvalidInputError(
            "the matrix holds non-finite entries",
            code="non_finite_weights",
            fix="remove NaN or inf",
        )
    return x


def _svd(x: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    factor: Tensor = left @ right
    # LAPACK's vectors are orthonormal to several p * eps; half a Newton-Schulz step mends that.
    return factor - factor @ (gram_residual(factor) / 2)
