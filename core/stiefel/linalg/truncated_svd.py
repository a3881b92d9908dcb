"""Singular value decompositions X = U diag(sigma) V^H of one matrix, by three engines.

``full`` is LAPACK's SVD. ``gram`` is the eigendecomposition of the smaller Gram matrix in
float64: cheaper, exact for float32 data unless the matrix is very ill-conditioned.
``randomised`` finds the leading part alone, by a sketch refined with power steps.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError

Engine = Literal["auto", "full", "gram", "randomised"]

DOUBLE = (torch.float64, torch.complex128)  # what stores more digits than ``gram`` may leave

# sigma_min / sigma_max under which squaring in the Gram matrix costs visible accuracy:
# the relative error of the least singular vectors is about eps / ratio^2, here 2e-10.
GRAM_RATIO = 1e-3
TALL = 2.0  # aspect from which the Gram matrix is much the cheaper problem
SKETCH_SHARE = 0.4  # of the smaller side: a wider sketch costs more than the whole spectrum
OVERSAMPLING = 0.25  # of the rank, and at least 8 columns
POWER_STEPS = 4


class Svd(NamedTuple):
    """Thin factors of one matrix; singular values descend."""

    U: Tensor  # (n, r)  orthonormal columns
    sigma: Tensor  # (r,)   real, not negative
    Vh: Tensor  # (r, m)  orthonormal rows


def thin_svd(x: Tensor, *, engine: Literal["auto", "full", "gram"] = "auto") -> Svd:
    """Return the whole thin SVD of ``x``, computed and returned in float64 or complex128.

    Args:
        x: ``(n, m)``, real or complex, finite.
        engine: ``auto`` takes ``gram`` where one side is at least twice the other and the
            smallest singular value at least 1e-3 of the largest, else ``full``. ``gram`` is
            taken at its word: singular vectors of values under 1e-7 of the largest are then
            not orthonormal. For float64 data whose every digit counts, ask for ``full``.

    Cost: ``full`` about 20 products of n x m by m x m, ``gram`` 4 to 10.

    Source: Golub and Van Loan, Matrix Computations, 4th ed., sections 8.6 and 10.4.
    """
    x = widened(x)
    oblong = min(x.shape) > 0 and max(x.shape) >= TALL * min(x.shape)
    if engine == "gram" or (engine == "auto" and oblong):
        gram = _gram_svd(x)
        if engine == "gram" or gram.sigma[-1] > GRAM_RATIO * gram.sigma[0]:
            return gram
    return Svd(*torch.linalg.svd(x, full_matrices=False))


def singular_values(x: Tensor) -> Tensor:
    """Return all singular values of ``x`` ``(n, m)``, descending, in float64.

    By the Gram matrix: each is exact to about ``eps * sigma_1^2 / sigma_i``.
    """
    x = widened(x)
    gram = x.mH @ x if x.shape[0] >= x.shape[1] else x @ x.mH
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.flip(0).clamp(min=0).sqrt()


def truncated_svd(x: Tensor, rank: int, *, generator: torch.Generator) -> Svd:
    """Return the leading ``rank`` singular triplets of ``x`` by a randomised sketch.

    The sketch has a quarter more columns than ``rank`` and takes four power steps in the
    precision of ``x`` (float32 for half); the error is typically within 0.7 % of the optimum.
    Where the sketch would be wider than 0.4 of the smaller side, the whole SVD is computed and
    cut instead.

    Args:
        x: ``(n, m)``, real or complex, finite.
        rank: between 1 and min(n, m).
        generator: source of the sketch; the same seed gives the same bits.

    Raises:
        InvalidInputError: ``rank`` is out of range.

    Source: Halko, Martinsson and Tropp, SIAM Review 53 (2011), algorithms 4.4 and 5.1.
    """
    side = min(x.shape)
    if not 1 <= rank <= side:
        raise InvalidInputError(
            f"rank {rank} is not between 1 and {side}", code="rank_out_of_range", field="/rule"
        )
    width = rank + max(8, round(OVERSAMPLING * rank))
    if width > SKETCH_SHARE * side:
        svd = thin_svd(x)
        return Svd(svd.U[:, :rank], svd.sigma[:rank], svd.Vh[:rank])
    return _sketched(_at_least_single(x), rank, width, generator)


def widened(x: Tensor) -> Tensor:
    """``x`` in float64, or in complex128 where it is complex."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def _at_least_single(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _gram_svd(x: Tensor) -> Svd:
    if x.shape[0] < x.shape[1]:
        flipped = _gram_svd(x.mH)
        return Svd(flipped.Vh.mH, flipped.sigma, flipped.U.mH)
    values, vectors = torch.linalg.eigh(x.mH @ x)
    sigma = values.flip(0).clamp(min=0).sqrt()
    V = vectors.flip(1)
    # Below this the quotient is rounding noise; the floor keeps it bounded.
    floor = max(float(sigma[0]) * torch.finfo(sigma.dtype).eps, torch.finfo(sigma.dtype).tiny)
    return Svd((x @ V) / sigma.clamp(min=floor), sigma, V.mH)


def _sketched(x: Tensor, rank: int, width: int, generator: torch.Generator) -> Svd:
    omega = torch.randn(
        x.shape[1], width, dtype=x.dtype, generator=generator, device=generator.device
    ).to(x.device)
    Q = torch.linalg.qr(x @ omega).Q
    for _ in range(POWER_STEPS):
        Q = torch.linalg.qr(x.mH @ Q).Q
        Q = torch.linalg.qr(x @ Q).Q
    U, sigma, Vh = torch.linalg.svd(Q.mH @ x, full_matrices=False)
    parts = (Q @ U[:, :rank], sigma[:rank], Vh[:rank])
    return Svd(*(widened(part) for part in parts))
