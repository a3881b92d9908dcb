"""The group U(n) or O(n) = St(n, n) and its Lie algebra of skew-Hermitian matrices.

Left-trivialised: a tangent vector at U is ``U S`` with S skew-Hermitian.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stiefel.linalg import skew
from stiefel.linalg.solve import solve


def skew_of_tangent(u: Tensor, z: Tensor) -> Tensor:
    """Return ``S = skew(U^H Z)``, the Lie algebra element of the projection of Z at U."""
    return skew(u.mH @ z)


def exp_step(u: Tensor, s: Tensor) -> Tensor:
    """Return ``U exp(S)``; keeps the determinant of real U. Cost: about ten n^3 products."""
    return u @ torch.matrix_exp(s)


def cayley_step(u: Tensor, s: Tensor) -> Tensor:
    """Return ``U (I - S/2)^-1 (I + S/2)``: a step at any size, never reaching eigenvalue -1."""
    half = s / 2
    eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
    return u + 2 * u @ solve(eye - half, half)


def random_skew(*shape: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Draw a Gaussian skew-Hermitian ``(..., n, n)`` with unit variance off the diagonal."""
    gaussian = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    return skew(gaussian) * 2**0.5
