"""Linear systems and inverses, safe in batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# torch 2.13 with MKL on several threads fails on batches of larger systems ("Parameter 6 was
# incorrect on entry to SLASWP", or a wrong answer, seen from n = 200); single ones are sound.
BATCHED_UP_TO = 96


def solve(a: Tensor, b: Tensor) -> Tensor:
    """Return X with ``A X = B`` for ``(..., n, n)`` and ``(..., n, k)``; differentiable.

    Batches of large systems on a CPU are solved one after the other.
    """
    large = a.shape[-1] > BATCHED_UP_TO and a.ndim > 2 and a.device.type == "cpu"
    if not large or not a.numel():
        x: Tensor = torch.linalg.solve(a, b)
        return x
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    pairs = zip(
        a.expand(*batch, *a.shape[-2:]).flatten(0, -3),
        b.expand(*batch, *b.shape[-2:]).flatten(0, -3),
        strict=True,
    )
    return torch.stack([torch.linalg.solve(m, r) for m, r in pairs]).reshape(*batch, *b.shape[-2:])


def inverse(a: Tensor) -> Tensor:
    """Return the inverse of ``(..., n, n)``; infinite, without an error, where it is singular.

    Batches of large matrices on a CPU are inverted one after the other.
    """
    large = a.shape[-1] > BATCHED_UP_TO and a.ndim > 2 and a.device.type == "cpu"
    if large and a.numel():
        return torch.stack([inverse(member) for member in a.flatten(0, -3)]).reshape(a.shape)
    inverted: Tensor
    inverted, info = torch.linalg.inv_ex(a)
    # LAPACK leaves the factors of a singular matrix where its inverse would be.
    if bool(info.any()):
        inverted.masked_fill_((info != 0)[..., None, None], math.inf)
    return inverted
