"""The Stiefel manifold St(n, p) of n x p matrices with orthonormal columns, real or complex.

A point X has shape ``(..., n, p)`` with n >= p and X^H X = I_p. A tangent vector Z at X has the
same shape and X^H Z skew-Hermitian. St(n, n) is the orthogonal or unitary group.

Source: Edelman, Arias and Smith, SIAM J. Matrix Anal. Appl. 20(2), 1998.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import hermitian, skew
from stiefel.linalg.positive_qr import positive_qr


def project_tangent(x: Tensor, z: Tensor) -> Tensor:
    """Return ``Z - X herm(X^H Z)``, the tangent vector at X nearest to any ``z`` of the same shape.

    For square X this is ``(Z - X Z^H X) / 2``. Cost: two products of n p^2 multiply-adds.
    """
    return z - x @ hermitian(x.mH @ z)


def inner_euclidean(a: Tensor, b: Tensor) -> Tensor:
    """Return ``Re tr(A^H B)``, shape ``(...)``: the metric of the surrounding space."""
    return (a.conj() * b).sum(dim=(-2, -1)).real


def inner_canonical(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return ``Re tr(A^H (I - X X^H / 2) B)``: the metric of St(n, p) as a quotient of U(n)."""
    return inner_euclidean(a, b) - inner_euclidean(x.mH @ a, x.mH @ b) / 2


def gradient_euclidean(x: Tensor, gradient: Tensor) -> Tensor:
    """Return the Riemannian gradient in the Euclidean metric: the projected gradient."""
    return project_tangent(x, gradient)


def gradient_canonical(x: Tensor, gradient: Tensor) -> Tensor:
    """Return the Riemannian gradient in the canonical metric: ``G - X G^H X``."""
    return gradient - x @ (gradient.mH @ x)


def random_point(
    *shape: int,
    generator: torch.Generator,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw ``(..., n, p)`` from the uniform (Haar) distribution.

    The Q of a Gaussian matrix is uniform once the diagonal of R is made positive
    (Mezzadri, Notices of the AMS 54(5), 2007). The draw is made on the generator's device.

    Raises:
        InvalidInputError: n < p.
    """
    if len(shape) < 2 or shape[-2] < shape[-1]:
        raise InvalidInputError(f"a Stiefel point needs (..., n, p) with n >= p, got {shape}")
    gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    return positive_qr(gaussian)[0].to(device)


def random_tangent(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw a Gaussian tangent vector at ``x``: the projection of a Gaussian matrix."""
    gaussian = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
    return project_tangent(x, gaussian.to(x.device))


def tangent_defect(x: Tensor, z: Tensor) -> Tensor:
    """Return ``||herm(X^H Z)||_F``, shape ``(...)``: zero where Z is tangent at X."""
    product = x.mH @ z
    norm: Tensor = torch.linalg.matrix_norm(product - skew(product))
    return norm
