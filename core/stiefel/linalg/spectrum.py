"""Cheap facts about the singular values of X, read from probes, its Gram matrix and a Cholesky."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from stiefel.linalg.parts import adjoint_times

PROBE_FROM = 256  # p from which a few products with vectors cost far less than a Gram matrix


def mean_eigenvalue(gram: Tensor) -> Tensor:
    """Return the mean eigenvalue of ``(..., p, p)``, real, as ``(..., 1, 1)``."""
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    mean: Tensor = diagonal.real.mean(dim=-1, keepdim=True).unsqueeze(-1)
    return mean


def spread(x: Tensor, gram: Tensor, size: float | None = None) -> float:
    """Return the largest variance of the eigenvalues of ``G = X^H X`` over their squared mean.

    Zero for a multiple of an orthonormal matrix; one for a Gaussian square matrix;
    p / (effective rank) - 1 in general. NaN for the zero matrix. Cost: a pass over x and G, over
    G alone where ``size``, the norm of a single x, is known.
    """
    p = gram.shape[-1]
    if gram.ndim == 2:  # a small matrix feels every operation
        size = float(torch.linalg.vector_norm(x)) if size is None else size
        norm = float(torch.linalg.vector_norm(gram))
        return p * (norm / size**2) ** 2 - 1 if size else math.nan
    second, first = (torch.linalg.vector_norm(z, dim=(-2, -1)) for z in (gram, x))
    return p * float((second / first.square()).max()) ** 2 - 1


def probed_spread(x: Tensor, *, probes: int = 1) -> float:
    """Estimate ``spread(x, X^H X)`` without forming the Gram matrix.

    Hutchinson's estimator with fixed vectors: E[|X v|^2] = tr G and E[|X^H X v|^2] = tr G^2.
    Cost: ``4 * probes * n * p`` multiply-adds.
    """
    p = x.shape[-1]
    y = x @ _vectors(x, probes)
    z = adjoint_times(x, y)
    ratio = torch.linalg.matrix_norm(z) / torch.linalg.matrix_norm(y).square()
    return p * probes * float(ratio.max()) ** 2 - 1


def largest_eigenvalue(gram: Tensor, *, pairs: int = 6) -> Tensor:
    """Estimate the largest eigenvalue of ``(..., p, p)`` Hermitian PSD, from below.

    Powers of the matrix on four fixed vectors; misses by some per cent. Returns ``(..., 1, 1)``.
    """
    v = _vectors(gram, 4)
    for _ in range(pairs):
        v = gram @ (gram @ v)
        v = v / _norm(v)
    columns: Tensor = torch.linalg.vector_norm(gram @ v, dim=-2, keepdim=True)
    columns = columns / torch.linalg.vector_norm(v, dim=-2, keepdim=True)
    return columns.nan_to_num().amax(dim=-1, keepdim=True)


def norm_bound(x: Tensor) -> Tensor:
    """Return an estimate of the spectral norm of ``(..., n, p)`` that is seldom below it.

    For small p the Frobenius norm of X^H X, whose root is at most p^(1/4) times the norm; from
    p = 256, where that product costs more than a few probes, powers of X^H X on four fixed vectors
    and a tenth for what they miss. Returns ``(..., 1, 1)``.
    """
    # The inverse of a nearly singular matrix holds entries whose fourth powers overflow.
    if x.shape[-1] < PROBE_FROM:
        size = _norm(x)
        unit = x / size
        return _norm(unit.mH @ unit).sqrt() * size
    v = _vectors(x, 4)
    for _ in range(3):
        v = _unit_columns(adjoint_times(x, _unit_columns(x @ v)))
    columns: Tensor = torch.linalg.vector_norm(x @ v, dim=-2, keepdim=True)
    return 1.1 * columns.amax(dim=-1, keepdim=True)


def _unit_columns(v: Tensor) -> Tensor:
    unit: Tensor = v / torch.linalg.vector_norm(v, dim=-2, keepdim=True)
    return unit


def exceeds(gram: Tensor, floor: Tensor) -> bool:
    """Tell whether every eigenvalue of each ``(..., p, p)`` is above its ``floor (..., 1, 1)``.

    A Cholesky factorisation of ``G - floor I`` decides. Cost: p^3 / 3 multiply-adds.
    """
    shifted = gram.clone()
    shifted.diagonal(dim1=-2, dim2=-1).sub_(floor.squeeze(-1))
    _, info = torch.linalg.cholesky_ex(shifted)
    return not bool(info.any())


def _norm(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v, dim=(-2, -1), keepdim=True)
    return norm


def _vectors(x: Tensor, count: int) -> Tensor:
    """Fixed vectors without structure: the same input always takes the same path."""
    signs = _signs(x.shape[-1], count).to(device=x.device, dtype=x.dtype)
    return signs.expand(*x.shape[:-2], *signs.shape)


@lru_cache(maxsize=64)
def _signs(rows: int, count: int) -> Tensor:
    index = torch.arange(1, rows * count + 1, dtype=torch.float64)
    return torch.sin(index * index * 1.7).sign().reshape(rows, count)
