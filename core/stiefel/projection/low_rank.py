"""Low-rank factorisation W ~ factor_out @ factor_in of one matrix, with its evidence.

By Eckart and Young the truncated SVD is the best approximation of its rank in Frobenius
norm, and its error is the norm of the singular values left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg.truncated_svd import DOUBLE, Engine, Svd, thin_svd, truncated_svd, widened

Factors = Literal["balanced", "us_v"]
ChooseRank = Callable[[Tensor], int]
BLOCK_ELEMENTS = 2**22  # rows of a product are formed in blocks of about this many elements


@dataclass(frozen=True)
class LowRank:
    """Two factors and how good they are, measured on the factors as they are stored."""

    factor_out: Tensor  # (n, r)
    factor_in: Tensor  # (r, m)
    rank: int
    relative_error: float  # ||W - factor_out @ factor_in||_F / ||W||_F
    optimal_error: float | None  # the Eckart-Young bound, relative; None if only a part is known
    retained_energy: float  # sum of the kept sigma^2 over ||W||_F^2


def factorize(
    x: Tensor,
    rank: int | ChooseRank,
    *,
    engine: Engine = "auto",
    factors: Factors = "balanced",
    generator: torch.Generator | None = None,
) -> LowRank:
    """Return the best factors of rank ``rank`` of ``x``, in the dtype of ``x``.

    Args:
        x: ``(n, m)``, real or complex, of any floating dtype.
        rank: between 1 and min(n, m), or a function of the singular values (all of them,
            descending, float64), for example from ``stiefel.projection.rank_rules``.
        engine: ``auto`` is ``gram``, or ``full`` for float64 and complex128. ``randomised``
            needs a number for ``rank`` and knows no optimal error.
        factors: ``balanced`` gives U sqrt(S) and sqrt(S) V^H, ``us_v`` gives U S and V^H.
        generator: source of the random sketch; default a new one with seed 0.

    Raises:
        InvalidInputError: not a matrix, non-finite entries, or a rank out of range.

    Cost: one eigendecomposition of the smaller Gram matrix in float64 and three products; one
    SVD by ``full``.

    Source: Eckart and Young, Psychometrika 1 (1936).
    """
    if x.ndim != 2 or x.layout != torch.strided or not bool(torch.isfinite(x).all()):
        raise InvalidInputError(
            f"factorize needs a finite dense matrix, got shape {tuple(x.shape)}, {x.layout}"
        )
    if isinstance(rank, int) and engine == "randomised":
        generator = generator or torch.Generator(device=x.device).manual_seed(0)
        svd = truncated_svd(x, rank, generator=generator)
        return low_rank(x, svd, rank, factors=factors)
    svd = whole_svd(x, engine)
    chosen = rank if isinstance(rank, int) else rank(svd.sigma)
    return low_rank(x, svd, chosen, factors=factors)


def whole_svd(x: Tensor, engine: Engine) -> Svd:
    """All singular triplets by ``full`` or ``gram``.

    ``auto`` takes ``gram``, whose tail is exact to about 1e-8 of the norm: below what float32
    can store. For float64 and complex128 input, which can store more, it takes ``full``.
    """
    if engine == "auto":
        engine = "full" if x.dtype in DOUBLE else "gram"
    return thin_svd(x, engine="full" if engine == "full" else "gram")


def low_rank(x: Tensor, svd: Svd, rank: int, *, factors: Factors = "balanced") -> LowRank:
    """Cut ``svd`` of ``x`` at ``rank``, round to the dtype of ``x``, and measure.

    Raises:
        InvalidInputError: ``rank`` is not between 1 and the number of singular values.
    """
    known = svd.sigma.numel()
    if not 1 <= rank <= known:
        raise InvalidInputError(
            f"rank {rank} is not between 1 and {known}", code="rank_out_of_range", field="/rule"
        )
    factor_out, factor_in = _factors(svd, rank, factors)
    factor_out, factor_in = factor_out.to(x.dtype), factor_in.to(x.dtype)
    norm = float(torch.linalg.vector_norm(widened(x)))
    kept = float(svd.sigma[:rank].square().sum())
    tail = float(torch.linalg.vector_norm(svd.sigma[rank:]))
    scale = norm or 1.0
    return LowRank(
        factor_out,
        factor_in,
        rank,
        relative_error=product_error(x, factor_out, factor_in) / scale,
        optimal_error=tail / scale if known == min(x.shape) else None,
        retained_energy=min(1.0, kept / scale**2) if norm else 1.0,
    )


def _factors(svd: Svd, rank: int, factors: Factors) -> tuple[Tensor, Tensor]:
    U, sigma, Vh = svd.U[:, :rank], svd.sigma[:rank], svd.Vh[:rank]
    if factors == "us_v":
        return U * sigma, Vh
    root = sigma.sqrt()
    return U * root, root[:, None] * Vh


def product_error(x: Tensor, factor_out: Tensor, factor_in: Tensor) -> float:
    """``||x - factor_out @ factor_in||_F`` in float64, by blocks of rows."""
    right = widened(factor_in)
    step = max(1, BLOCK_ELEMENTS // max(1, x.shape[1]))
    total = 0.0
    for begin in range(0, x.shape[0], step):
        rows = slice(begin, begin + step)
        rest = widened(x[rows]) - widened(factor_out[rows]) @ right
        total += float(torch.linalg.vector_norm(rest)) ** 2
    return math.sqrt(total)


def merge(factor_out: Tensor, factor_in: Tensor) -> Tensor:
    """The product of two factors, formed in float64 and rounded once to their dtype."""
    return (widened(factor_out) @ widened(factor_in)).to(factor_out.dtype)


def relative_distance(x: Tensor, y: Tensor) -> float:
    """``||x - y||_F / ||x||_F`` in float64; the norm of ``y`` where ``x`` is zero."""
    norm = float(torch.linalg.vector_norm(widened(x))) or 1.0
    return float(torch.linalg.vector_norm(widened(x) - widened(y))) / norm
