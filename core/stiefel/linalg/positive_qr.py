"""QR decomposition with a positive diagonal of R, which makes it unique."""

from __future__ import annotations

import torch
from torch import Tensor


def positive_qr(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return Q ``(..., n, p)`` and R ``(..., p, p)`` with X = Q R and R's diagonal >= 0.

    Where the diagonal is zero (dependent columns) the sign is left as it is.
    """
    q, r = torch.linalg.qr(x)
    diagonal = r.diagonal(dim1=-2, dim2=-1)
    phase = torch.where(diagonal == 0, 1, torch.sgn(diagonal))
    return q * phase.unsqueeze(-2), r * phase.conj().unsqueeze(-1)
