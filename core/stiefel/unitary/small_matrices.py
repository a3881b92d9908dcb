"""The 2k x 2k algebra behind a rank-k update: no eigenvectors, no QR, no host synchronisation.

Every function takes ``gamma``, the Gram matrix ``F^H F`` of a generator ``S = F K F^H`` with F
tall and K skew-Hermitian, and returns the small matrix M with which the whole update is
``W + F M (F^H W)``. All functions batch over leading dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Taylor of degree 14 reaches 5e-17 at norm 1/2.
_DEGREE = 14
# On an accelerator the number of doublings must not depend on data: reading it back would
# stall the queue. Twelve cover generators of norm 2048, far beyond any sensible step.
_DEVICE_DOUBLINGS = 12
_ROOT_ITERATIONS = 40
_DEVICE_ROOT_ITERATIONS = 24


def tangent_core(gamma: Tensor, K: Tensor, *, accuracy: float = 1e-17) -> Tensor:
    """Return ``M = K phi_1(gamma K)``, ``phi_1(x) = (e^x - 1) / x``, so that W moves by exp(S).

    ``accuracy``: of phi_1, where M will be rounded to a narrower dtype.
    """
    return K @ phi_1(gamma @ K, accuracy=accuracy)


def cayley_core(gamma: Tensor, K: Tensor) -> Tensor:
    """Return ``M = K (I - gamma K / 2)^-1``: W moves by ``(I - S/2)^-1 (I + S/2)``."""
    x = gamma @ K
    return K @ _inverse(_identity(x) - x / 2)


def direct_core(gamma: Tensor, K: Tensor) -> Tensor:
    """Return ``M = -K (I + gamma K + Y)^-1`` with ``Y = (I + gamma K)^(1/2)``.

    ``(I + F K F^H)^(-1/2) = I + F M F^H``, here with K Hermitian. Written without a difference
    of nearly equal terms, so that small steps keep their relative accuracy.
    """
    A = _identity(gamma) + gamma @ K
    return -K @ _inverse(A + square_root(A))


def direct_generator_core(gamma: Tensor, K: Tensor) -> Tensor:
    """Return M for the polar factor of ``W + S W``: ``(I + S)(I - S^2)^(-1/2) = I + F M F^H``."""
    x = gamma @ K
    eye = _identity(x)
    Y = square_root(eye - x @ x)
    return K @ (eye + x @ _inverse(eye + Y)) @ _inverse(Y)


def phi_1(x: Tensor, *, accuracy: float = 1e-17) -> Tensor:
    """Return ``(e^x - 1) / x`` of ``(..., q, q)`` by Taylor, scaling and doubling.

    ``phi_1(2x) = phi_1(x) + x phi_1(x)^2 / 2`` adds to a number near one, so that the doublings
    lose nothing for the small arguments that training makes.
    """
    norm = x.abs().sum(-2).amax(-1)
    doublings = torch.ceil(torch.log2(norm.clamp_min(1e-30))).add(1).clamp(0, 60)
    scaled = x * torch.exp2(-doublings)[..., None, None].to(x.dtype)
    eye = _identity(x)
    degree = _degree(norm, doublings, accuracy)
    value = eye + scaled / (degree + 1)
    for term in range(degree - 1, 0, -1):
        value = eye + scaled @ value / (term + 1)
    for done in range(_count(doublings)):
        wanted = (doublings > done)[..., None, None]
        doubled = value + scaled @ value @ value / 2
        value = torch.where(wanted, doubled, value)
        scaled = torch.where(wanted, 2 * scaled, scaled)
    return value


def square_root(A: Tensor) -> Tensor:
    """Return the principal root of ``(..., q, q)`` with positive spectrum, by Denman-Beavers.

    Product form: quadratic, insensitive to non-normality, inverse only.
    Source: Higham, Functions of Matrices, SIAM 2008, eq. (6.29).
    """
    eye = _identity(A)
    M, Y = A, A
    for _ in range(_ROOT_ITERATIONS if A.device.type == "cpu" else _DEVICE_ROOT_ITERATIONS):
        last = A.device.type == "cpu" and _settled(M - eye)
        inverse = _inverse(M)
        Y = Y @ (eye + inverse) / 2
        M = (eye + (M + inverse) / 2) / 2
        if last:
            break
    return Y


def _settled(residual: Tensor) -> bool:
    # The next iterate errs by the square of this: below rounding.
    tolerance = torch.finfo(residual.dtype).eps ** 0.5
    return bool(torch.linalg.matrix_norm(residual).amax() < tolerance)


def _degree(norm: Tensor, doublings: Tensor, accuracy: float) -> int:
    """Taylor terms that reach the accuracy: fewer for small steps, where reading one is free."""
    if norm.device.type != "cpu":
        return _DEGREE
    scaled = float((norm * torch.exp2(-doublings)).max())
    degree, size = 1, scaled / 2
    while size > accuracy and degree < _DEGREE:
        degree += 1
        size *= scaled / (degree + 1)
    return degree


def _count(doublings: Tensor) -> int:
    return int(doublings.max()) if doublings.device.type == "cpu" else _DEVICE_DOUBLINGS


def _identity(x: Tensor) -> Tensor:
    return torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(x.shape)


def _inverse(x: Tensor) -> Tensor:
    # inv_ex does not check for singularity and so does not wait for the device.
    inverse: Tensor = torch.linalg.inv_ex(x).inverse
    return inverse
