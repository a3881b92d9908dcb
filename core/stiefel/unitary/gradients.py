"""Rank-k factors of a gradient: ``G ~ a b^H`` with a (..., n, k) and b (..., p, k).

Exact from a linear layer (``a = delta^T, b = x^T``: the gradient is never formed), or compressed
from a dense gradient or from factors of higher rank. Nothing here depends on the scale of G: a
gradient of size 1e-12 is compressed as well as one of size 1.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.unitary.rank_k_update import Products

# Rank from which Gram matrices are formed in the dtype of the factors, whose norms must then
# have squares in its range: for float32, 1e-18 to 1e18.
_EXACT_GRAMS = 32

Approximation = Literal["range", "lsi", "columns"]


class Gradient(NamedTuple):
    """A gradient as ``a b^H``, with the products a layer has already."""

    a: Tensor  # (..., n, k)
    b: Tensor  # (..., p, k)
    products: Products | None = None


def compress(
    G: Tensor, rank: int, *, approximation: Approximation, generator: torch.Generator
) -> Gradient:
    """Return rank-``rank`` factors of the dense gradient G ``(..., n, p)``.

    Raises:
        InvalidInputError: rank outside 1 .. min(n, p), or an unknown approximation.
    """
    check_rank(rank, min(G.shape[-2:]))
    if approximation == "range":
        return range_finder(G, rank, generator=generator)
    if approximation == "lsi":
        return lsi(G, rank, generator=generator)
    if approximation == "columns":
        return column_sampling(G, rank, generator=generator)
    raise InvalidInputError(f"unknown approximation {approximation!r}: range, lsi or columns")


def lsi(G: Tensor, rank: int, *, generator: torch.Generator) -> Gradient:
    """Latent semantic indexing: ``G V V^H`` with V a basis of ``G^H R``, R random orthonormal.

    One pass. The authors divide by ``sqrt(e) + 1e-6``, which shrinks a step of size 1e-5 by half;
    an orthonormal basis spans the same space at any scale.

    Source: Papadimitriou et al., Latent semantic indexing, JCSS 61(2), 2000; arXiv 2203.05483.
    """
    R = torch.linalg.qr(_normal(G, G.shape[-2], rank, generator)).Q
    V = torch.linalg.qr(_adjoint(G, R)).Q
    return Gradient(G @ V, V)


def range_finder(
    G: Tensor,
    rank: int,
    *,
    generator: torch.Generator,
    oversampling: int = 4,
    power_steps: int = 1,
) -> Gradient:
    """Randomised range finder with oversampling and power steps, then the best rank inside.

    Cost: ``2 + 2 power_steps`` skinny products with G.
    Source: Halko, Martinsson, Tropp, SIAM Review 53(2), 2011, alg. 4.4.
    """
    width = min(rank + oversampling, *G.shape[-2:])
    V = torch.linalg.qr(_adjoint(G, _normal(G, G.shape[-2], width, generator))).Q
    for _ in range(power_steps):
        V = torch.linalg.qr(_adjoint(G, torch.linalg.qr(G @ V).Q)).Q
    a, b = _best_directions(G @ V, V, rank)
    return Gradient(a, b)


def column_sampling(
    G: Tensor, rank: int, *, generator: torch.Generator, samples: int | None = None
) -> Gradient:
    """Return ``H H^H G``, H the leading left singular directions of sampled columns of G.

    ``samples`` (default ``4 rank``) columns are drawn without replacement with probability
    proportional to their squared norm and rescaled to be unbiased.

    Source: Drineas, Kannan, Mahoney, SIAM J. Comput. 36(1), 2006.
    """
    flat = G.reshape(-1, *G.shape[-2:])
    count = min(samples or 4 * rank, G.shape[-1])
    check_rank(rank, count)
    weights = _unit(flat).abs().square().sum(-2)
    # A zero matrix has no preference; any columns will do.
    weights = torch.where(weights.sum(-1, keepdim=True) > 0, weights, 1.0) + 1e-30
    chosen = torch.multinomial(weights, count, generator=generator)
    columns = torch.take_along_dim(flat, chosen[:, None, :], -1)
    probability = torch.take_along_dim(weights, chosen, -1) / weights.sum(-1, keepdim=True)
    scaled = _unit(columns) * probability.clamp_min(1e-20).rsqrt()[:, None, :].to(G.dtype)
    H = torch.linalg.svd(_unit(scaled), full_matrices=False).U[..., :rank]
    H = H.reshape(*G.shape[:-1], rank)
    return Gradient(H, _adjoint(G, H))


def truncate(gradient: Gradient, rank: int) -> Gradient:
    """Return the best approximation of ``a b^H`` of at most ``rank``, without forming it."""
    if gradient.a.shape[-1] <= rank:
        return gradient
    Q, R = torch.linalg.qr(gradient.b)
    a, b = _best_directions(gradient.a @ R.mH, Q, rank)
    return Gradient(a, b)


def squared_norm(gradient: Gradient) -> Tensor:
    """Return ``||a b^H||_F^2 = tr((a^H a)(b^H b))``, float64, from the k x k Gram matrices."""
    wide = torch.complex128 if gradient.a.is_complex() else torch.float64
    a, b = gradient.a, gradient.b
    narrow = wide if a.shape[-1] < _EXACT_GRAMS else a.dtype
    gram_a, gram_b = ((x.mH @ x).to(wide) for x in (a.to(narrow), b.to(narrow)))
    squared: Tensor = (gram_a * gram_b.mT).sum((-2, -1)).real
    return squared


def scaled(gradient: Gradient, factor: Tensor | float) -> Gradient:
    """Return the gradient times a number (or one per matrix), its known products kept true."""
    if isinstance(factor, Tensor):
        factor = factor.to(gradient.a.dtype)
        factor = factor[..., None, None] if factor.ndim else factor
    products = gradient.products
    if products is not None:
        products = products._replace(Wa=products.Wa * factor)
    return Gradient(gradient.a * factor, gradient.b, products)


def check_rank(rank: int, largest: int) -> None:
    """Raise ``InvalidInputError`` unless ``1 <= rank <= largest``."""
    if not 1 <= rank <= largest:
        raise InvalidInputError(
            f"rank {rank} must be from 1 to {largest}, the most this gradient can have",
            code="rank_too_large",
            fix="lower the rank",
        )


def _best_directions(left: Tensor, V: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return ``left Z`` and ``V Z``, Z the ``rank`` leading right singular directions of left."""
    Z = torch.linalg.svd(torch.linalg.qr(_unit(left)).R).Vh.mH[..., :rank]
    return left @ Z, V @ Z


def _unit(x: Tensor) -> Tensor:
    """Scale each matrix to largest entry one, so that no square underflows; zero stays zero."""
    largest = x.abs().amax((-2, -1), keepdim=True)
    return x / torch.where(largest > 0, largest, 1.0).to(x.dtype)


def _adjoint(G: Tensor, X: Tensor) -> Tensor:
    """Return ``G^H X`` in the row-skinny layout."""
    return (X.mH @ G).mH


def _normal(G: Tensor, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    shape = (*G.shape[:-2], rows, columns)
    return torch.randn(shape, dtype=G.dtype, device=G.device, generator=generator)
