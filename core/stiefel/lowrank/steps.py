"""The steps of low-rank training as pure functions of matrices. All batch over leading dimensions.

With W = U S V^T, G the dense gradient, K = U S and L = V S^T: dK = G V, dL = G^T U and
dS = U^T G V come out of one backward pass (see :mod:`stiefel.lowrank.product`), because the
three passes of the published method evaluate the same function at the same point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stiefel.lowrank.bases import Algorithm, complement, reorthonormalize


class Factors(NamedTuple):
    """W = left @ core @ right^T."""

    left: Tensor  # U (..., n, p)
    core: Tensor  # S (..., p, q)
    right: Tensor  # V (..., m, q)

    def product(self) -> Tensor:
        """Return the dense ``(..., n, m)`` matrix; for exports and tests, never for a step."""
        return self.left @ self.core @ self.right.mT


class Gradients(NamedTuple):
    """What one tape yields."""

    grad_k: Tensor  # G V (..., n, q)
    grad_l: Tensor  # G^T U (..., m, p)
    grad_s: Tensor  # U^T G V (..., p, q)


class Augmented(NamedTuple):
    """Factors whose bases hold the gradient's directions; the product is unchanged."""

    factors: Factors
    new_left: Tensor  # (..., n, k) the added columns of U
    new_right: Tensor  # (..., m, l) the added columns of V


def pad_core(core: Tensor, rows: int, columns: int) -> Tensor:
    """Return ``core`` grown by zero rows and columns at the end."""
    return torch.nn.functional.pad(core, (0, columns, 0, rows))


def augment(
    factors: Factors, dK: Tensor, dL: Tensor, *, algorithm: Algorithm = "auto"
) -> Augmented:
    """Extend U by the directions of dK and V by those of dL; W stays what it is, exactly.

    The bases at most double, and never exceed n and m columns.
    """
    new_left = complement(factors.left, dK, algorithm=algorithm)
    new_right = complement(factors.right, dL, algorithm=algorithm)
    return Augmented(extend(factors, new_left, new_right), new_left, new_right)


def extend(factors: Factors, new_left: Tensor, new_right: Tensor) -> Factors:
    """Return the factors with more columns in the bases and zeros in the core."""
    return Factors(
        torch.cat((factors.left, new_left), dim=-1),
        pad_core(factors.core, new_left.shape[-1], new_right.shape[-1]),
        torch.cat((factors.right, new_right), dim=-1),
    )


def reorthonormalized(factors: Factors) -> Factors:
    """Return the factors of the same product with the rounding of the bases moved into the core."""
    left, left_part = reorthonormalize(factors.left)
    right, right_part = reorthonormalize(factors.right)
    return Factors(left, left_part @ factors.core @ right_part.mT, right)


def scale_since(
    left: Tensor, grad_k: Tensor, grad_s: Tensor, *, rounded: bool = False
) -> float | Tensor:
    """By how much S's gradient was scaled after the backward pass that left ``grad_k``.

    A clipped or unscaled gradient of S stands beside untouched ones of the bases; since
    dS = U^T dK, the scale can be read off. Up to a hundredth it is taken for rounding, and is 1.
    So it is where the two are not parallel: then S.grad holds something else besides, such as
    that of a penalty on S, and says nothing about a scale.

    Args:
        left: U ``(..., n, p)``.
        grad_k: dK ``(..., n, q)``.
        grad_s: what S.grad holds now, ``(..., p, q)``.
        rounded: the pass ran in half precision, which turns the one from the other by 1e-3.

    Returns:
        a scalar, 1 where nothing can be told.
    """
    whole, now = left.mT @ grad_k, grad_s
    on_cpu = now.device.type == "cpu"  # nothing to wait for there
    if on_cpu and float(torch.dist(whole, now)) < 0.01 * float(torch.linalg.vector_norm(now)):
        return 1.0  # nearly always, and a dozen small operations less
    whole, now = whole.double(), now.double()
    inner, square = (whole * now).sum(), whole.square().sum()
    scale = inner / square
    parallel = inner * inner / (square * now.square().sum())  # the squared cosine
    least = 1 - (1e-2 if rounded else 1e-3) ** 2
    if on_cpu:
        value = float(scale)
        clear = value > 0 and abs(value - 1) > 0.01 and float(parallel) > least
        return value if clear else 1.0
    told = (scale > 0) & ((scale - 1).abs() > 0.01) & (parallel > least)
    return torch.where(told, scale, 1.0).to(grad_s.dtype)


def augmented_gradient(
    gradients: Gradients,
    new_left: Tensor,
    new_right: Tensor,
    corner: Tensor | None,
    *,
    scale: float | Tensor = 1.0,
) -> Tensor:
    """Return the gradient of the augmented core, assembled from what the tape already holds.

    Args:
        gradients: at the old bases.
        new_left: Ut ``(..., n, k)``.
        new_right: Vt ``(..., m, l)``.
        corner: Ut^T G Vt ``(..., k, l)`` makes the step exact (variant E); None leaves the
            corner zero, which is the Riemannian gradient step (variant P).
        scale: of all blocks but that of S; see :func:`scale_since`.
    """
    if corner is None:
        corner = gradients.grad_s.new_zeros(
            *gradients.grad_s.shape[:-2], new_left.shape[-1], new_right.shape[-1]
        )
    # The blocks are scaled, not the gradients of the bases: those are as large as the layer.
    upper = torch.cat((gradients.grad_s, scale * (gradients.grad_l.mT @ new_right)), dim=-1)
    lower = scale * torch.cat((new_left.mT @ gradients.grad_k, corner), dim=-1)
    return torch.cat((upper, lower), dim=-2)


def rotate(factors: Factors, left: Tensor, sigma: Tensor, right: Tensor) -> Factors:
    """Return the factors in the coordinates of a truncated core, S = diag(sigma)."""
    return Factors(factors.left @ left, torch.diag_embed(sigma), factors.right @ right)


def transport_first(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Carry a first moment of the core to rotated bases: left^T m right."""
    return left.mT @ moment @ right


def transport_second(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Carry a second moment, elementwise: (left * left)^T v (right * right), never negative.

    Adam keeps only the diagonal of the gradient's second moments. Entries of G that do not
    correlate with each other have, in the new coordinates left^T G right, exactly these. The sum
    of v is kept when the bases turn, and an even v stays even; (left^T sqrt(v) right)^2, the rule
    of the code of Schotthoefer et al. (arXiv 2505.08022), is right for signed permutations only:
    elsewhere its terms cancel, and a step divided by what is left can be hundreds of times lr.
    """
    return left.square().mT @ moment @ right.square()
