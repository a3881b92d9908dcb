"""Which polar algorithm wins where, as measured with two threads by benchmarks/polar.py.

The spread of the squared singular values (see spectrum) stands for the condition: it is
ln(condition) - 1 where singular values are log-uniform. The order depends on the linear algebra
library: MKL, which PyTorch brings for x86, inverts a matrix 1.6 times as fast on an Intel Xeon as
on an AMD EPYC, with equal products and SVDs.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

from torch import Tensor

Name = Literal["polynomial", "gram", "newton", "svd"]
# Up to a spread, an algorithm; in this order, which is also that of falling back.
Row = tuple[tuple[float, Name], ...]
# The row of the first key above p.
Rows = Mapping[float, Row]

PROBED_FROM = 512  # p from which a probe tells the spread for a few per cent of X^H X's price
TALL = 2  # aspect from which the Gram form is cheaper than a QR factorisation
GAUSSIAN = (0.9, 1.2)  # spread of a square Gaussian matrix: common, and of a condition of some p
WIDE_SPREAD = 4.6  # spread that means a condition number over 100: the Gram form is inaccurate
# Factorisations run far from the speed of a product on a GPU: at 2048 x 2048 and a condition of 1e6
# an H100 takes 16 ms for the polynomials, 30 for Newton's inverses and 366 for the SVD.
ON_ACCELERATOR: tuple[Name, ...] = ("polynomial", "newton", "svd")
_ANY = math.inf


@dataclass(frozen=True, eq=False)  # hashed by identity
class Regimes:
    """What is fastest for each kind of input; 7 is a condition of 3e3, 10 of 6e4, 15 of 9e6."""

    square: Rows
    tall: Rows
    batch: Rows  # and tall batches where ``tall_batch`` has no row
    tall_batch: Rows
    gaussian: Rows  # square, the spread aside


_POLYNOMIAL_OR_SVD: Row = ((7.0, "polynomial"), (_ANY, "svd"))
_NEWTON: Row = ((_ANY, "newton"),)
_POLYNOMIAL: Row = ((_ANY, "polynomial"), (_ANY, "newton"))
_GRAM_OR_NEWTON: Row = ((WIDE_SPREAD, "gram"), (_ANY, "newton"))
_GRAM_TO_NEWTON: Row = ((WIDE_SPREAD, "gram"), (8.5, "polynomial"), (_ANY, "newton"))

INTEL = Regimes(
    square={
        96: _POLYNOMIAL_OR_SVD,
        256: ((10.0, "polynomial"), (_ANY, "newton")),
        512: ((4.6, "polynomial"), (_ANY, "newton")),
        _ANY: _NEWTON,
    },
    tall={
        96: ((2.5, "polynomial"), (WIDE_SPREAD, "gram"), (8.5, "polynomial"), (_ANY, "svd")),
        256: ((8.5, "polynomial"), (_ANY, "newton")),
        512: _GRAM_TO_NEWTON,
        _ANY: _GRAM_OR_NEWTON,
    },
    batch={
        256: ((20.0, "polynomial"), (_ANY, "newton")),
        512: ((8.5, "polynomial"), (_ANY, "newton")),
        _ANY: _NEWTON,
    },
    tall_batch={
        256: ((20.0, "polynomial"), (_ANY, "newton")),
        512: _GRAM_TO_NEWTON,
        _ANY: _GRAM_OR_NEWTON,
    },
    gaussian={96: _POLYNOMIAL, _ANY: _NEWTON},
)
AMD = Regimes(
    square={
        96: _POLYNOMIAL_OR_SVD,
        256: ((10.0, "polynomial"), (_ANY, "svd")),
        512: ((2.3, "polynomial"), (WIDE_SPREAD, "gram"), (15.0, "newton"), (_ANY, "svd")),
        _ANY: ((WIDE_SPREAD, "gram"), (15.0, "newton"), (_ANY, "svd")),
    },
    tall={
        96: ((WIDE_SPREAD, "gram"), (8.5, "polynomial"), (_ANY, "svd")),
        256: ((WIDE_SPREAD, "gram"), (8.5, "polynomial"), (_ANY, "svd")),
        _ANY: ((WIDE_SPREAD, "gram"), (15.0, "newton"), (_ANY, "svd")),
    },
    batch={
        128: ((20.0, "polynomial"), (_ANY, "svd")),
        256: ((15.0, "polynomial"), (_ANY, "svd")),
        512: ((8.5, "polynomial"), (15.0, "newton"), (_ANY, "svd")),
        _ANY: ((15.0, "newton"), (_ANY, "svd")),
    },
    tall_batch={
        256: ((15.0, "polynomial"), (_ANY, "svd")),
        _ANY: ((WIDE_SPREAD, "gram"), (15.0, "newton"), (_ANY, "svd")),
    },
    gaussian={256: _POLYNOMIAL, _ANY: _NEWTON},
)


def ranking(x: Tensor, width: float) -> list[Name]:
    """The algorithms to try on ``x`` of spread ``width``, on a CPU, the fastest first."""
    *batch, n, p = x.shape
    row = _row(measured(), n, p, math.prod(batch) > 1, seems_gaussian(n, p, width))
    names = [name for reach, name in row if width <= reach]
    # NaN is no smaller than anything: the zero matrix is for whoever comes last.
    return names or [row[-1][1]]


@lru_cache(maxsize=256)  # a small matrix feels the lookup
def _row(regimes: Regimes, n: int, p: int, many: bool, gaussian: bool) -> Row:
    if gaussian:
        rows = regimes.batch if many and p < PROBED_FROM / 2 else regimes.gaussian
    elif n >= TALL * p:
        rows = regimes.tall_batch if many else regimes.tall
    else:
        rows = regimes.batch if many else regimes.square
    return next(row for limit, row in rows.items() if p < limit)


@cache
def measured() -> Regimes:
    """The regimes of this processor; of an unknown one, those that trust inverses less."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        processor = information.read_text(encoding="utf-8", errors="replace")[:2000]
    else:
        processor = platform.processor()  # on Linux it would start a process to ask
    return INTEL if "Intel" in processor else AMD


def batched(x: Tensor) -> bool:
    """Whether ``x`` holds more than one matrix."""
    return math.prod(x.shape[:-2]) > 1


def guessed_ratio(x: Tensor, width: float) -> float:
    """Guess the least singular value over the largest from the spread of the squares."""
    n, p = x.shape[-2:]
    if seems_gaussian(n, p, width):
        return 1 / (2 * p)
    return math.exp(-1 - min(width, 20.0))


def seems_gaussian(n: int, p: int, width: float) -> bool:
    """Whether an n x p matrix is square and spread as one of independent entries is."""
    return n == p and GAUSSIAN[0] < width < GAUSSIAN[1]
