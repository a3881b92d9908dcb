"""Orthogonal and unitary starting points. All fill ``(..., n, p)`` in place from a generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError


@torch.no_grad()
def haar_(W: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill with matrices drawn uniformly from the manifold (n >= p).

    Source: Mezzadri, Notices of the AMS 54(5), 2007: QR with the phases of R divided out.
    """
    _check_tall(W)
    wide = torch.complex128 if W.is_complex() else torch.float64
    sample = torch.randn(W.shape, dtype=wide, generator=generator)
    Q, R = torch.linalg.qr(sample)
    return W.copy_(Q * R.diagonal(dim1=-2, dim2=-1).sgn()[..., None, :])


@torch.no_grad()
def henaff_(W: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill with 2 x 2 rotations by angles uniform in (-pi, pi) on the diagonal; odd n ends in 1.

    Source: Henaff, Szlam, LeCun, Recurrent orthogonal networks and long-memory tasks, 2016.
    """
    angles = _angles(W, generator) * (2 * math.pi) - math.pi
    return _rotations(W, angles)


@torch.no_grad()
def cayley_(W: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Fill with 2 x 2 rotations by t uniform in (0, pi/2), through the Cayley map.

    ``s = sqrt((1 - cos t) / (1 + cos t)) = tan(t / 2)`` is the entry whose Cayley map turns by t.
    (The authors' code takes the exponential of s instead, turning by tan(t/2).)

    Source: Helfrich, Willmott, Ye, Orthogonal recurrent neural networks with scaled Cayley
    transform, 2018.
    """
    t = _angles(W, generator) * (math.pi / 2)
    s = torch.sqrt((1 - t.cos()) / (1 + t.cos()))
    return _rotations(W, 2 * torch.atan(s))


def _angles(W: Tensor, generator: torch.Generator | None) -> Tensor:
    _check_square(W)
    return torch.rand(*W.shape[:-2], W.shape[-1] // 2, dtype=torch.float64, generator=generator)


def _rotations(W: Tensor, angles: Tensor) -> Tensor:
    W.zero_()
    even = torch.arange(0, 2 * angles.shape[-1], 2)
    W[..., even, even] = angles.cos().to(W)
    W[..., even + 1, even + 1] = angles.cos().to(W)
    W[..., even, even + 1] = -angles.sin().to(W)
    W[..., even + 1, even] = angles.sin().to(W)
    if W.shape[-1] % 2:
        W[..., -1, -1] = 1
    return W


def _check_tall(W: Tensor) -> None:
    if W.ndim < 2 or W.shape[-2] < W.shape[-1]:
        raise InvalidInputError(f"a frame is (..., n, p) with n >= p, got {tuple(W.shape)}")


def _check_square(W: Tensor) -> None:
    if W.ndim < 2 or W.shape[-2] != W.shape[-1]:
        raise InvalidInputError(f"rotations fill square matrices, got {tuple(W.shape)}")
