"""Lie parameters of a frame: free numbers whose exponential has orthonormal columns.

The parametrisation of arXiv 2102.10052 and 2102.11855: the strictly lower part of ``theta``
``(n, p)`` fills the first p columns of an n x n zero matrix; L = theta - theta^H is
skew-Hermitian; the frame is the first p columns of exp(L). Complex frames also use the imaginary
diagonal, without which u(n) is not covered.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from stiefel.linalg.skew_exponential import exp_skew


def skew_of_parameters(theta: Tensor) -> Tensor:
    """Return the n x n skew-Hermitian matrix of ``theta (..., n, p)``, n >= p."""
    n, p = theta.shape[-2:]
    lower = pad(theta.tril(-1), (0, n - p))
    algebra = lower - lower.mH
    if theta.is_complex():
        phases = pad(theta.diagonal(dim1=-2, dim2=-1).imag, (0, n - p))
        algebra = algebra + 1j * torch.diag_embed(phases)
    return algebra


def frame_of_parameters(theta: Tensor) -> Tensor:
    """Return the first p columns of ``exp(skew_of_parameters(theta))``: ``(..., n, p)``.

    Differentiable. Cost: one n x n matrix exponential, twice that in the backward pass.
    """
    return exp_skew(skew_of_parameters(theta))[..., : theta.shape[-1]]


def parameters_of_skew(algebra: Tensor, p: int) -> Tensor:
    """Return the parameters of a skew matrix whose last n - p columns carry nothing of their own.

    The inverse of ``skew_of_parameters`` on its range; for p = n the range is all of u(n) or o(n).
    """
    theta = algebra[..., :p].tril(-1)
    if algebra.is_complex():
        phases = 1j * algebra.diagonal(dim1=-2, dim2=-1)[..., :p].imag
        theta = theta + pad(torch.diag_embed(phases), (0, 0, 0, algebra.shape[-2] - p))
    return theta
