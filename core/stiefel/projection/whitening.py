"""Low-rank factors that are best for the data a layer sees, not for its weights alone.

With C = sum x x^T over the inputs and C = R R^T, the error of a layer's output is
``||X (W - W')^T||_F = ||(W - W') R||_F``. So the truncated SVD of W R, with R undone by a
triangular solve, is the best W' of its rank, and its error is the tail of the singular values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg.truncated_svd import Svd, widened
from stiefel.projection.low_rank import BLOCK_ELEMENTS, Factors
from stiefel.rank_bounds import check_rank

ROWS = 8192  # rows widened to float64 at a time
REPAIR = 1e-6  # of the mean diagonal, on top of the most negative eigenvalue


class SecondMoment:
    """C = sum x x^T and sum x over streamed rows, in float64.

    Args:
        width: m, the length of a row.
        device: where the m x m matrix lives.
        stored_transposed: whether the layer that receives the rows stores the transpose of its
            weight.
    """

    def __init__(
        self,
        width: int,
        *,
        device: torch.device | str | None = None,
        stored_transposed: bool = False,
    ) -> None:
        self.stored_transposed = stored_transposed
        self.matrix = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.total = torch.zeros(width, dtype=torch.float64, device=device)
        self.count = 0

    def add(self, x: Tensor) -> None:
        """Add rows ``(..., m)`` of any floating dtype.

        Raises:
            InvalidInputError: another width, or non-finite entries, which would spoil the sum.
        """
        if x.shape[-1] != len(self.total):
            raise InvalidInputError(
                f"rows of width {x.shape[-1]} do not belong to a moment of width {len(self.total)}",
                code="calibration_width",
            )
        if not bool(torch.isfinite(x).all()):
            raise InvalidInputError(
                "the calibration data lead to NaN or infinity",
                code="non_finite_calibration",
                fix="leave the batch out, or run the model in float32",
            )
        for rows in torch.split(x.detach().reshape(-1, x.shape[-1]), ROWS):
            wide = rows.to(self.matrix)
            self.matrix.addmm_(wide.T, wide)
            self.total += wide.sum(0)
            self.count += len(wide)

    @property
    def mean(self) -> Tensor:
        """E[x], ``(m,)``."""
        return self.total / max(1, self.count)

    def centred(self) -> Tensor:
        """C about the mean: sum (x - E[x]) (x - E[x])^T."""
        return self.matrix - torch.outer(self.total, self.total) / max(1, self.count)


class Root(NamedTuple):
    """C + shift I = lower lower^T."""

    lower: Tensor  # (m, m) float64
    shift: float  # 0 unless C was not positive definite


class Whitened(NamedTuple):
    """Factors of one layer and what they cost its output on the calibration data."""

    factor_out: Tensor  # (n, r)
    factor_in: Tensor  # (r, m)
    bias_change: Tensor | None  # (n,) to add to the bias; None without correction
    rank: int
    predicted_error: float  # ||X (W - W')^T||_F, exact while ``shift`` is 0
    shift: float


def moment_root(moment: Tensor, layer: str = "") -> Root:
    """Return the Cholesky factor of a layer's second moment, repaired where it is singular.

    A moment of fewer rows than its width, or with dead inputs, is only semidefinite. Then
    ``|lambda_min| + 1e-6 * mean diagonal`` is added to the diagonal, once.

    Raises:
        InvalidInputError: the moment is zero.

    Cost: m^3 / 3 flops, and one eigenvalue computation for a repair.
    """
    mean = float(moment.diagonal().mean())
    if not mean > 0:
        raise InvalidInputError(
            f"the calibration inputs of {repr(layer) if layer else 'this layer'} are all zero",
            code="empty_calibration",
            tensor=layer or None,
            fix="give batches that reach the layer",
        )
    lower, info = torch.linalg.cholesky_ex(moment)
    # A pivot near rounding would blow the solve up as surely as a negative one.
    smallest = float(lower.diagonal().amin()) if not int(info) else 0.0
    if smallest**2 > 1e-13 * mean:
        return Root(lower, 0.0)
    shift = abs(float(torch.linalg.eigvalsh(moment)[0])) + REPAIR * mean
    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return Root(torch.linalg.cholesky(moment + shift * eye), shift)


def whitened_values(weight: Tensor, root: Root) -> Tensor:
    """Singular values of W R ``(min(n, m),)``: the error each direction would cost."""
    values: Tensor = torch.linalg.svdvals(widened(weight) @ root.lower)
    return values


def output_change(weight: Tensor, moment: Tensor, parts: Sequence[Tensor] = ()) -> float:
    """``sqrt(tr((W - P) C (W - P)^T))``: how far outputs move where P stands for W, in float64.

    Args:
        weight: W ``(n, m)``, real.
        moment: C ``(m, m)``, about the mean where a bias takes up the change of the mean.
        parts: P itself, or factors whose product it is; none of them for P = 0, the outputs' norm.

    Cost: one product of n x m by m x m beside P, by blocks of rows.
    """
    inner = [widened(part) for part in parts[1:]]
    step = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    total = 0.0
    for begin in range(0, weight.shape[0], step):
        rows = slice(begin, begin + step)
        rest = widened(weight[rows])
        if parts:
            rest = rest - reduce(torch.matmul, inner, widened(parts[0][rows]))
        total += float(((rest @ widened(moment)) * rest).sum())
    return math.sqrt(max(0.0, total))


def unwhitened_factors(svd: Svd, root: Root, rank: int, factors: Factors) -> tuple[Tensor, Tensor]:
    """Cut the SVD of W R at ``rank`` and undo R by a solve, never by an inverse; in float64."""
    U, sigma = svd.U[:, :rank], svd.sigma[:rank]
    inner = torch.linalg.solve_triangular(root.lower.mT, svd.Vh[:rank].mT, upper=True).mT
    if factors == "us_v":
        return U * sigma, inner
    scale = sigma.sqrt()
    return U * scale, scale[:, None] * inner


def factorize_whitened(
    weight: Tensor,
    moment: SecondMoment,
    rank: int | Callable[[Tensor], int],
    *,
    factors: Factors = "balanced",
    correct_bias: bool = False,
    root: Root | None = None,
) -> Whitened:
    """Return the factors of rank r that change the layer's output least on its data.

    Args:
        weight: W ``(n, m)``, any floating dtype; the factors come back in it.
        moment: of the layer's inputs.
        rank: 1 to min(n, m), or chosen from the whitened singular values.
        factors: ``balanced`` splits the singular values over both, ``us_v`` leaves them left.
        correct_bias: use the moment about the mean and return (W - W') E[x] for the bias;
            better whenever inputs are not centred.
        root: of the same moment, when it is known already.

    Raises:
        InvalidInputError: rank out of range, widths that differ, or an empty moment.

    Cost: a Cholesky factorisation of m x m and one SVD of n x m, in float64.

    Source: Wang et al., SVD-LLM, ICLR 2025, arXiv 2403.07378.
    """
    if weight.ndim != 2 or weight.shape[1] != len(moment.total):
        raise InvalidInputError(
            f"a {tuple(weight.shape)} weight does not take inputs of width {len(moment.total)}",
            code="calibration_width",
        )
    root = root or moment_root(moment.centred() if correct_bias else moment.matrix)
    wide = widened(weight)
    U, sigma, Vh = torch.linalg.svd(wide @ root.lower, full_matrices=False)
    keep = rank(sigma) if callable(rank) else rank
    check_rank(keep, *weight.shape)
    out, into = unwhitened_factors(Svd(U, sigma, Vh), root, keep, factors)
    change = (wide - out @ into) @ moment.mean if correct_bias else None
    return Whitened(
        out.to(weight.dtype).contiguous(),
        into.to(weight.dtype).contiguous(),
        None if change is None else change.to(weight.dtype),
        keep,
        float(torch.linalg.vector_norm(sigma[keep:])),
        root.shift,
    )
