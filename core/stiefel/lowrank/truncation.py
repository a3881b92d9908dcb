"""Which rank a core keeps, and the rotation that puts it there.

The public adaptive code of the method's authors omits the last singular value from the tail,
compares strictly, and multiplies V by the rows of ``Vh``; each of the three changes the
product. Here the tail is whole, the comparison is the definition, and V takes columns of Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError


@dataclass(frozen=True)
class RankRule:
    """When the tail of the singular values may go.

    Args:
        tolerance: ``truncation_tolerance`` tau; the least rank with tail norm <= tau * whole norm.
        relative: false takes tau as the bound on the tail norm itself.
        least: lower bound on the rank.
        most: upper bound on the rank; None for the size of the matrix.
    """

    tolerance: float = 0.1
    relative: bool = True
    least: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        """Refuse bounds that no rank satisfies."""
        if not self.tolerance >= 0:
            raise InvalidInputError(
                f"the truncation tolerance is {self.tolerance}",
                code="bad_tolerance",
                field="/tolerance",
                fix="give a number >= 0; 0 keeps every direction",
            )
        if self.least < 1 or (self.most is not None and self.most < self.least):
            raise InvalidInputError(
                f"no rank lies between {self.least} and {self.most}",
                code="bad_rank_bounds",
                field="/rank",
                fix="give 1 <= least <= most",
            )


class Truncated(NamedTuple):
    """A core brought to diagonal form: ``core ~ left @ diag(sigma) @ right^T``."""

    left: Tensor  # (..., p, r) orthonormal columns
    sigma: Tensor  # (..., r) descending
    right: Tensor  # (..., q, r) orthonormal columns: columns of Q, not rows of Q^T
    tail: float  # Frobenius norm of what was dropped
    rank: int


def core_svd(core: Tensor, layer: str = "") -> tuple[Tensor, Tensor, Tensor]:
    """Singular value decomposition of a small core, with a second attempt in float64.

    Returns ``(P, sigma, Qh)``.

    Raises:
        InvalidInputError: the core of ``layer`` defeats the divide-and-conquer driver even in
            float64; in practice it is not finite.
    """
    try:
        return tuple(torch.linalg.svd(core, full_matrices=False))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        try:
            left, sigma, right = torch.linalg.svd(core.double(), full_matrices=False)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            raise InvalidInputError(
                f"the core of {layer or 'a layer'} has no singular values: it is not finite",
                code="core_not_finite",
                tensor=layer or None,
                fix="lower the learning rate, or resume from an earlier checkpoint",
            ) from None
        return left.to(core.dtype), sigma.to(core.dtype), right.to(core.dtype)


def kept_rank(sigma: Tensor, rule: RankRule, *, if_zero: int | None = None) -> int:
    """Return the least rank whose tail norm is within the rule, clamped to its bounds.

    Args:
        sigma: ``(..., k)`` descending. With leading dimensions (groups), the most any needs.
        rule: tolerance and bounds.
        if_zero: rank of an all-zero core, which the relative rule cannot judge (default k).
    """
    count = sigma.shape[-1]
    most = count if rule.most is None else min(rule.most, count)
    least = min(rule.least, most)
    if rule.tolerance == 0:
        return most
    # One transfer and Python's floats: these few numbers are not worth a dozen kernels.
    groups = sigma.detach().reshape(-1, count).tolist()
    if rule.relative and not any(group[0] > 0 for group in groups):
        return max(least, min(most, count if if_zero is None else if_zero))
    return max(least, min(most, max(_needed(group, rule) for group in groups)))


def _needed(sigma: list[float], rule: RankRule) -> int:
    """The least j whose tail norm(sigma[j:]) is within the bound."""
    whole = math.hypot(*sigma)
    bound = rule.tolerance * whole if rule.relative else rule.tolerance
    tail = 0.0
    for j in range(len(sigma), 0, -1):
        tail = math.hypot(tail, sigma[j - 1])
        if tail > bound:
            return j
    return 0


def truncate_core(
    core: Tensor,
    rule: RankRule,
    *,
    rank: int | None = None,
    if_zero: int | None = None,
    layer: str = "",
) -> Truncated:
    """Decompose ``core`` and keep the leading part.

    Args:
        core: ``(..., p, q)``.
        rule: decides the rank unless ``rank`` is given.
        rank: keep exactly this many directions (at most min(p, q)).
        if_zero: see :func:`kept_rank`.
        layer: the name that an error gives.

    Cost: one SVD of p x q.
    """
    left, sigma, right_h = core_svd(core, layer)
    keep = kept_rank(sigma, rule, if_zero=if_zero) if rank is None else min(rank, sigma.shape[-1])
    tail = math.hypot(*sigma[..., keep:].flatten().tolist())
    return Truncated(
        left[..., :keep], sigma[..., :keep], right_h.mT[..., :keep].contiguous(), tail, keep
    )
