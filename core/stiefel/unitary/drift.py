"""Drift control: a few columns per step are made orthonormal again, the defect read on the way.

Rounding moves W off the manifold by a random walk, and projUNN-D multiplies what is there. One
Newton-Schulz step on a block C of columns, ``C <- C - W (W^H C - I) / 2``, costs 4 n p r
operations; walking through all columns in turn keeps the defect flat. It comes before the step,
so that a fused kernel reads the residual on the way to the products it needs anyway.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stiefel.unitary.rank_k_update import Products


def restore_columns_(W: Tensor, columns: range) -> Tensor:
    """Newton-Schulz step on ``columns`` of W ``(..., n, p)`` in place.

    Returns:
        ``(..., p, r)``: ``W^H C - I_r`` as it was before.
    """
    C = W[..., columns.start : columns.stop]
    residual = (C.mH @ W).mH.contiguous()
    residual[..., columns.start : columns.stop, :].diagonal(dim1=-2, dim2=-1).sub_(1)
    C -= (residual.mT @ W.mT).mT / 2
    return residual


def restore_before_step_(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    products: Products | None,
    columns: range,
    *,
    restore: Callable[[Tensor, range], Tensor] = restore_columns_,
) -> tuple[Tensor, Products | None]:
    """Like ``restore``; known products with W as it was become those with the new W."""
    inside = slice(columns.start, columns.stop)
    before = W[..., inside].clone() if products is not None else None
    residual = restore(W, columns)
    if products is None or before is None:
        return residual, products
    shift = W[..., inside] - before
    Wa = products.Wa.clone()
    Wa[..., inside, :] += shift.mH @ a
    return residual, Products(products.Wb + shift @ b[..., inside, :], Wa)


def next_columns(cursor: int, *, width: int, p: int) -> range:
    """Return the next block of at most ``width`` columns from ``cursor``, never wrapping."""
    start = cursor % p
    return range(start, min(p, start + width))


def estimated_defect(residual: Tensor) -> Tensor:
    """Return an unbiased estimate of ``||W^H W - I||_F`` from the residual of some columns.

    The residual ``(..., p, r)`` is r of the p columns of ``W^H W - I``.
    """
    p, r = residual.shape[-2:]
    norm: Tensor = torch.linalg.matrix_norm(residual)
    estimate: Tensor = norm * (p / max(r, 1)) ** 0.5
    return estimate
