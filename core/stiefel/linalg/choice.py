"""Which polar algorithm wins where, as measured with two threads by benchmarks/polar.py.

The spread of the squared singular values (see spectrum) stands for the condition: it is
ln(condition) - 1 where singular values are log-uniform.
"""

from __future__ import annotations

import math

from torch import Tensor

SMALL = 96  # p under which the SVD of one matrix is faster than a few inverses
LARGE = 256  # p from which inverses and eigenvectors run at some half of the speed of products
PROBED_FROM = 512  # p from which a probe tells the spread for a few per cent of X^H X's price
TALL = 2  # aspect from which the Gram form is cheaper than a QR factorisation
GAUSSIAN = (0.9, 1.2)  # spread of a square Gaussian matrix: common, and of a condition of some p
# Below p, the spread up to which polynomials win for one square matrix against the SVD (p under
# SMALL) or inverses: 7 is a condition of 3e3, 10 of 6e4, 4.6 of 300.
SQUARE_REACHES = ((SMALL, 7.0), (LARGE, 10.0), (PROBED_FROM, 4.6))
OTHER_REACH = 8.5  # for batches, and for tall ones, which inverses need a QR factorisation for
BATCH_REACH = 20.0  # for batches of p under LARGE, which LAPACK treats one after the other


def batched(x: Tensor) -> bool:
    """Whether ``x`` holds more than one matrix."""
    return math.prod(x.shape[:-2]) > 1


def polynomial_reach(x: Tensor, width: float) -> float:
    """The spread up to which composed polynomials are the fastest on ``x``, whose own is width."""
    n, p = x.shape[-2:]
    many = batched(x)
    if many and p < LARGE:
        return BATCH_REACH
    if p >= SMALL and seems_gaussian(x, width):
        return 0.0
    if (many or n >= TALL * p) and p < PROBED_FROM:
        return OTHER_REACH
    return next((reach for limit, reach in SQUARE_REACHES if p < limit), 0.0)


def guessed_ratio(x: Tensor, width: float) -> float:
    """Guess the least singular value over the largest from the spread of the squares."""
    if seems_gaussian(x, width):
        return 1 / (2 * x.shape[-1])
    return math.exp(-1 - min(width, 20.0))


def seems_gaussian(x: Tensor, width: float) -> bool:
    """Whether ``x`` is square and spread as a matrix of independent entries is."""
    return x.shape[-2] == x.shape[-1] and GAUSSIAN[0] < width < GAUSSIAN[1]
