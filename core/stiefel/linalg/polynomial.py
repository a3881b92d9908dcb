"""Minimax polynomials of degree 5, composed: the polar factor of a moderately conditioned matrix.

An odd polynomial maps the singular values and keeps the singular vectors. Each step uses the one
that brings the known interval [l, u] of singular values closest to 1; its error tells the interval
of the next step, so the whole schedule is known before the first product.

Source: Nakatsukasa and Freund, SIAM Review 58(3), 2016 (composition of optimal functions);
Amsel et al., The Polar Express, arXiv 2505.16932 (greedy polynomials, the cushion).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Quintic = tuple[float, float, float]

# A step that spreads the upper singular values down to the lower end of the interval would
# lose digits there; the interval handed to Remez is never wider than this.
CUSHION = 0.024
# Where the residual is this small the binomial series of Newton-Schulz converges faster.
CLOSE = 0.12


def polynomial_steps(
    x: Tensor, gram: Tensor, lower: float, *, top: float | None = None
) -> tuple[Tensor, int]:
    """Bring the singular values of ``x`` from ``[lower, 1]`` times their bound to within 12 % of 1.

    Values under ``lower`` grow by the same factors, so that a guess that was too high costs no
    more than another call.

    Args:
        x: ``(..., n, p)``.
        gram: ``X^H X``, consumed.
        lower: the smallest singular value over the largest, or a guess; rounded down to a power
            of 2^(1/4).
        top: a bound on the largest eigenvalue of ``X^H X``; by default it is read from the square
            of ``X^H X``, which the first step needs.

    Returns:
        The iterate and the number of steps. Cost of a step: two n x p products, one p x p.
    """
    steps = schedule(2.0 ** (math.floor(math.log2(min(lower, 1.0)) * 4) / 4))
    for k, (a, b, c) in enumerate(steps):
        if k:
            gram = x.mH @ x
        series = gram @ gram
        if k:
            series.mul_(c).add_(gram, alpha=b).diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            _first(series, gram, (a, b, c), top)
        x = x @ series
    return x, len(steps)


def _first(square: Tensor, gram: Tensor, step: Quintic, top: float | None) -> None:
    """The first series, in place of ``square``, for an x that is yet to be scaled."""
    a, b, c = step
    if top is not None:
        root = math.sqrt(top)
        square.mul_(c / (top * top * root)).add_(gram, alpha=b / (top * root))
        square.diagonal(dim1=-2, dim2=-1).add_(a / root)
        return
    # ||G^2||_F^(1/2) is at least the largest eigenvalue, and for p = 64 seldom over twice that.
    bound = torch.linalg.vector_norm(square, dim=(-2, -1), keepdim=True).sqrt()
    square.mul_(c / bound.square()).add_(gram.mul_(b / bound))
    square.diagonal(dim1=-2, dim2=-1).add_(a)
    square.mul_(bound.rsqrt())


@lru_cache(maxsize=256)
def schedule(lower: float) -> tuple[Quintic, ...]:
    """The polynomials that bring ``[lower, 1]`` to within 12 % of 1, first step first."""
    upper, steps = 1.0, []
    while 1 - lower > CLOSE or upper - 1 > CLOSE:
        (a, b, c), error = minimax_quintic(max(lower, CUSHION * upper), upper)
        steps.append((a, b, c))
        lower = min(a * lower + b * lower**3 + c * lower**5, 1 - error)
        upper = 1 + error
    return tuple(steps)


def minimax_quintic(lower: float, upper: float) -> tuple[Quintic, float]:
    """Return a, b, c and the error of the best ``a s + b s^3 + c s^5`` to 1 on the interval.

    Remez exchange on four points; the inner two are the roots of a quadratic in s^2.
    """
    inner = (lower + 0.3 * (upper - lower), lower + 0.75 * (upper - lower))
    for _ in range(60):
        s = np.array([lower, *inner, upper])
        system = np.stack([s, s**3, s**5, [1.0, -1.0, 1.0, -1.0]], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4))
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        new = (math.sqrt((-3 * b - root) / (10 * c)), math.sqrt((-3 * b + root) / (10 * c)))
        moved = abs(new[0] - inner[0]) + abs(new[1] - inner[1])
        inner = new
        if moved < 1e-12:
            break
    return (float(a), float(b), float(c)), abs(float(error))
