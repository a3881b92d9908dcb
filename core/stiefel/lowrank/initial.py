"""Starting factors: from the draw a dense layer would have had, or from trained weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.lowrank.steps import Factors
from stiefel.rank_bounds import check_rank


def spectral_factors(weight: Tensor, rank: int, *, keep_norm: bool = False) -> Factors:
    """Return the best factors of ``weight`` at ``rank``, with S diagonal and descending.

    Args:
        weight: ``(..., n, m)``, finite; half precision is decomposed in float32.
        rank: 1 to min(n, m).
        keep_norm: scale S so that the Frobenius norm of the product is that of ``weight``; right
            for a random draw, whose truncation would start the network too small, wrong for
            trained weights.

    Raises:
        InvalidInputError: rank out of range or non-finite weights.

    Cost: one SVD of n x m.
    """
    check_rank(rank, weight.shape[-2], weight.shape[-1])
    if not bool(torch.isfinite(weight).all()):
        raise InvalidInputError(
            "the weight holds NaN or infinity",
            code="non_finite_weights",
            fix="repair or exclude the layer before factorising it",
        )
    wide = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    svd = torch.linalg.svd(wide, full_matrices=False)
    left, sigma, right_h = (part.to(weight.dtype) for part in svd)
    kept = sigma[..., :rank]
    if keep_norm:
        whole = torch.linalg.vector_norm(sigma, dim=-1, keepdim=True)
        part = torch.linalg.vector_norm(kept, dim=-1, keepdim=True)
        kept = kept * torch.where(part > 0, whole / part, 1.0)
    return Factors(
        left[..., :rank].contiguous(),
        torch.diag_embed(kept),
        right_h.mT[..., :rank].contiguous(),
    )


def drawn_factors(
    shape: tuple[int, ...],
    rank: int,
    *,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Factors:
    """Return spectral factors of the uniform Kaiming draw that ``nn.Linear`` starts from.

    Args:
        shape: ``(..., n, m)``; the bound of the draw is 1/sqrt(m).
        rank: 1 to min(n, m).
        generator: source of the draw; None uses torch's default generator.
        dtype: float32 or float64.
        device: where the factors live; the draw itself is made on the generator's device.
    """
    source = generator.device if generator is not None else device
    bound = 1 / math.sqrt(shape[-1])
    draw = torch.empty(shape, dtype=dtype, device=source).uniform_(
        -bound, bound, generator=generator
    )
    factors = spectral_factors(draw, rank, keep_norm=True)
    return Factors(*(part.to(device) for part in factors)) if device is not None else factors
