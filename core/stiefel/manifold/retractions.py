"""Retractions on St(n, p): from a point X along a tangent vector Z to a point again.

Each is ``X + Z`` to first order and a point for any Z, however long; they differ in price and in
how closely they follow the geodesic:

========  ==========================================  =====================================
polar     the point nearest to X + Z                  second order; O(n p^2), cheapest near X
qr        Q of X + Z                                  first order; O(n p^2)
cayley    the Cayley transform of the rotation        second order; solves with 2p x 2p
exp       the geodesic of the canonical metric        exact; matrix exponential of 2p x 2p
========  ==========================================  =====================================

Source: Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, 2008, ch. 4;
Edelman, Arias and Smith 1998; Wen and Yin, Mathematical Programming 142, 2013 (Cayley).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stiefel.linalg import polar_factor, skew
from stiefel.linalg.positive_qr import positive_qr
from stiefel.linalg.solve import solve

Retraction = Callable[[Tensor, Tensor], Tensor]


def retract_polar(x: Tensor, z: Tensor) -> Tensor:
    """Return the polar factor of ``X + Z``.

    X + Z has full column rank for every tangent Z: (X + Z)^H (X + Z) = I + Z^H Z.
    """
    return polar_factor(x + z).factor


def retract_qr(x: Tensor, z: Tensor) -> Tensor:
    """Return Q of the QR decomposition of ``X + Z`` with a positive diagonal of R."""
    return positive_qr(x + z)[0]


def retract_cayley(x: Tensor, z: Tensor) -> Tensor:
    """Return ``(I - W/2)^-1 (I + W/2) X`` with the skew W (rank 2p) for which ``W X = Z``."""
    n, p = x.shape[-2:]
    eye = torch.eye(p if n == p else 2 * p, dtype=x.dtype, device=x.device)
    if n == p:
        s = skew(x.mH @ z) / 2
        return x + 2 * x @ solve(eye - s, s)
    # W = P Z X^H - X (P Z)^H with P = I - X X^H / 2; kept as the product L R^H.
    pz = z - x @ (x.mH @ z) / 2
    left, right = torch.cat([pz, x], dim=-1), torch.cat([x, -pz], dim=-1)
    inner = solve(eye - right.mH @ left / 2, right.mH @ x)
    return x + left @ inner


def retract_exp(x: Tensor, z: Tensor) -> Tensor:
    """Return the end of the canonical geodesic that leaves X with velocity Z, after unit time."""
    n, p = x.shape[-2:]
    a = skew(x.mH @ z)
    if n == p:
        end: Tensor = x @ torch.matrix_exp(a)
        return end
    q, r = torch.linalg.qr(z - x @ a)
    top = torch.cat([a, -r.mH], dim=-1)
    bottom = torch.cat([r, torch.zeros_like(r)], dim=-1)
    rotation = torch.matrix_exp(torch.cat([top, bottom], dim=-2))[..., :p]
    step: Tensor = x @ rotation[..., :p, :] + q @ rotation[..., p:, :]
    return step


RETRACTIONS: dict[str, Retraction] = {
    "polar": retract_polar,
    "qr": retract_qr,
    "cayley": retract_cayley,
    "exp": retract_exp,
}
