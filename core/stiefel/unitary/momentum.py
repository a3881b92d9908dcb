"""Momentum of a manifold parameter: one low-rank generator ``S = F K F^H`` per matrix.

The step of every map is ``W -> exp(S) W`` with S skew-Hermitian, so S lives in one Lie
algebra for all W: a sum of generators of different steps needs no transport. It is kept as F
(..., n, q) with orthonormal columns and a small skew-Hermitian K (..., q, q), never as n x n.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stiefel.unitary.gradients import Gradient
from stiefel.unitary.rank_k_update import skinny_products


class Generator(NamedTuple):
    """``S = F K F^H``, of rank at most q."""

    F: Tensor  # (..., n, q)
    K: Tensor  # (..., q, q), skew-Hermitian


def gradient_generator(W: Tensor, gradient: Gradient) -> Generator:
    """Return ``(G W^H - W G^H) / 2`` for ``G = a b^H``, the generator of the gradient at W."""
    a, b, products = gradient
    Wb = products.Wb if products is not None else skinny_products(W, a, b).Wb
    k = a.shape[-1]
    eye = torch.eye(k, dtype=a.dtype, device=a.device).expand(*a.shape[:-2], k, k) / 2
    zero = torch.zeros_like(eye)
    K = torch.cat((torch.cat((zero, -eye), -1), torch.cat((eye, zero), -1)), -2)
    return Generator(torch.cat((Wb, a), -1), K)


def accumulate(
    old: Generator | None, new: Generator, *, decay: float, gain: Tensor, rank: int
) -> Generator:
    """Return ``decay * old + gain * new``, truncated to ``rank`` columns.

    ``rank`` is even; ``gain`` is one number per matrix.
    """
    F, K = new.F, new.K * gain.to(new.K.dtype)[..., None, None]
    if old is not None:
        F = torch.cat((old.F, F), -1)
        K = _block_diagonal(old.K * decay, K)
    Q, R = torch.linalg.qr(F)
    middle = R @ K @ R.mH
    # Skew-Hermitian: singular values come in pairs (real), so an even cut never splits one.
    Z = torch.linalg.svd(middle).U[..., : min(rank, middle.shape[-1])]
    core = Z.mH @ middle @ Z
    return Generator(Q @ Z, (core - core.mH) / 2)


def where_taken(taken: Tensor, new: Generator, old: Generator) -> Generator:
    """Return ``new`` for the matrices of ``taken`` and ``old`` for the others.

    In the shape of ``new``: the others get columns of zeros, or where ``new`` has fewer, as after
    gradients of higher rank, lose the least of their directions, as in any step of that rank.
    """
    missing = new.F.shape[-1] - old.F.shape[-1]
    if missing < 0:
        whole = torch.ones_like(taken, dtype=old.K.dtype)
        old = accumulate(None, old, decay=1.0, gain=whole, rank=new.F.shape[-1])
    elif missing > 0:
        pad = torch.nn.functional.pad
        old = Generator(pad(old.F, (0, missing)), pad(old.K, (0, missing, 0, missing)))
    taken = taken[..., None, None]
    return Generator(*(torch.where(taken, x, y) for x, y in zip(new, old, strict=True)))


def _block_diagonal(x: Tensor, y: Tensor) -> Tensor:
    upper = torch.cat((x, x.new_zeros(*x.shape[:-1], y.shape[-1])), -1)
    lower = torch.cat((y.new_zeros(*y.shape[:-1], x.shape[-1]), y), -1)
    return torch.cat((upper, lower), -2)
