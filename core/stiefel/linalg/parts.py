"""Hermitian and skew parts, and how far a matrix is from orthonormal columns.

All functions batch over leading dimensions; complex is always meant, so ``.mH``, never ``.T``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def hermitian(a: Tensor) -> Tensor:
    """Return ``(A + A^H) / 2`` of ``(..., n, n)``."""
    return (a + a.mH) / 2


def skew(a: Tensor) -> Tensor:
    """Return ``(A - A^H) / 2`` of ``(..., n, n)``, the part in the Lie algebra of U(n)."""
    return (a - a.mH) / 2


def adjoint_times(x: Tensor, y: Tensor) -> Tensor:
    """Return ``X^H Y`` for a Y of few columns, through the row layout.

    Matrix libraries read X once for ``Y^H X`` but can be tens of times slower for ``X^H Y``.
    """
    return (y.mH @ x).mH


def gram_residual(x: Tensor) -> Tensor:
    """Return ``X^H X - I`` of ``(..., n, p)``, the matrix whose norm is the defect."""
    gram = x.mH @ x
    gram.diagonal(dim1=-2, dim2=-1).sub_(1)
    return gram


def orthogonality_defect(x: Tensor) -> Tensor:
    """Return ``||X^H X - I||_F`` of ``(..., n, p)``, real, of shape ``(...)``.

    Half-precision inputs are measured in float32, so that the figure is about the stored
    numbers and not about the measuring. Cost: one product of n p^2 multiply-adds.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    defect: Tensor = torch.linalg.matrix_norm(gram_residual(wide))
    return defect
