"""projUNN in compact form: move W by a rank-k step ``X = a b^H`` and stay on the manifold.

Writing ``F = [W b, a]`` and ``F^H W = [b, W^H a]^H``, every map below is
``W + F M (F^H W)`` with a 2k x 2k matrix M: two skinny products, a little algebra and one
rank-2k update. No eigenvectors, no QR, no N x N temporary, no host synchronisation. Because
only ``W^H W = I`` is used, W may also be a tall frame.

Source: Kiani, Balestriero, LeCun, Lloyd, projUNN, arXiv 2203.05483; the compact forms are derived
in docs/unitary.md.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg.precision import in_whole_precision
from stiefel.unitary import cuda_algebra
from stiefel.unitary.small_matrices import (
    cayley_core,
    direct_core,
    direct_generator_core,
    tangent_core,
)

# Rank from which Gram matrices are formed in the dtype of the factors: their products then cost as
# much as the update, and rounding in 2k x 2k entries is no more than that of the update itself.
# Squared norms must then stay in its range: for float32, norms of a and b from 1e-18 to 1e18.
_EXACT_GRAMS = 32

Variant = Literal["tangent", "direct", "cayley"]


class Products(NamedTuple):
    """The two products with W that every map needs, if a layer has them already."""

    Wb: Tensor  # (..., n, k)  W b; for a linear layer, its output
    Wa: Tensor  # (..., p, k)  W^H a; for a linear layer, the gradient of its input


class Factors(NamedTuple):
    """A rank-2k correction ``left @ right`` of W: ``W + left @ right`` is the result."""

    left: Tensor  # (..., n, q)
    right: Tensor  # (..., q, p)


@in_whole_precision
def rank_k_update(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
) -> Tensor:
    """Return W moved by the step ``X = a b^H`` and kept on the manifold. Pure.

    Args:
        W: ``(..., n, p)`` with n >= p and orthonormal columns; real or complex, float32 or wider.
        a: ``(..., n, k)``; learning rate and minus sign are inside a.
        b: ``(..., p, k)``.
        variant: ``tangent``: ``exp(S) W`` with ``S = (X W^H - W X^H) / 2``, the projUNN-T geodesic;
            ``cayley``: ``(I - S/2)^-1 (I + S/2) W``, orthogonal for any step and within
            ``O(S^3)`` of tangent; ``direct``: the polar factor of ``W + X``, projUNN-D.
        products: ``W b`` and ``W^H a``, where they are known already.

    Raises:
        InvalidInputError: shapes that do not fit, mixed dtypes, half precision, k > p.

    Cost: 8 n p k multiply-adds; W is read twice and written once. Caveat: ``direct`` needs
    ``W + X`` of full rank and its accuracy falls with its smallest singular value.
    """
    left, right = update_factors(W, a, b, variant=variant, products=products)
    return torch.baddbmm(_flat(W), _flat(left), _flat(right)).reshape(W.shape)


@in_whole_precision
def rank_k_update_(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
) -> Tensor:
    """Like ``rank_k_update``, into W itself: no n x p temporary."""
    return add_product_(W, *update_factors(W, a, b, variant=variant, products=products))


def update_factors(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
) -> Factors:
    """Return the rank-2k correction of ``rank_k_update`` without applying it."""
    check_step(W, a, b, variant=variant)
    Wb, Wa = products if products is not None else skinny_products(W, a, b)
    M = _core(a, b, Wa, variant).to(W.dtype)
    if variant == "direct":
        return _direct_factors(W, a, b, Wb, Wa, M)
    return Factors(_beside(Wb, a) @ M, _beside(b, Wa).mH)


def _core(a: Tensor, b: Tensor, Wa: Tensor, variant: Variant) -> Tensor:
    # A thousandth of the rounding of W: fewer products for float32.
    accuracy = max(1e-17, 1e-3 * torch.finfo(a.dtype).eps)
    gamma, gram_a = _grams(a, b, Wa, of_steps=variant != "direct")
    if cuda_algebra.supports(a):
        return cuda_algebra.core(gamma, gram_a, variant, accuracy=accuracy)
    gamma, gram_a, balance = _balanced(gamma, gram_a)
    if variant == "direct":
        return _unbalanced(direct_core(gamma, _direct_form(gram_a)), balance)
    K = _skew_form(gamma, a.shape[-1])
    if variant == "tangent":
        return _unbalanced(tangent_core(gamma, K, accuracy=accuracy), balance)
    return _unbalanced(cayley_core(gamma, K), balance)


def generator_factors(W: Tensor, F: Tensor, K: Tensor, *, variant: Variant = "tangent") -> Factors:
    """Return the correction that moves W by the generator ``S = F K F^H``, K skew-Hermitian.

    Args:
        W: ``(..., n, p)``.
        F: ``(..., n, q)``; best with columns of norm near one.
        K: ``(..., q, q)``.
        variant: as in ``rank_k_update``; ``direct`` is the polar factor of ``W + S W``.
    """
    core = {
        "tangent": tangent_core,
        "cayley": cayley_core,
        "direct": direct_generator_core,
    }[variant]
    wide = _wide(W.dtype)
    gamma = F.to(wide).mH @ F.to(wide)
    M = core(gamma, K.to(wide)).to(W.dtype)
    return Factors(F @ M, _adjoint_product(W, F).mH)


def skinny_products(W: Tensor, a: Tensor, b: Tensor) -> Products:
    """Return ``W b`` and ``W^H a`` in the row-skinny layout.

    ``(k, n) @ (n, p)`` and not ``(p, n) @ (n, k)``: the same product with the thin side in
    columns was measured up to 42 times slower in BLAS.
    """
    return Products((b.mT @ W.mT).mT, _adjoint_product(W, a))


def add_product_(W: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add ``left @ right`` to W in place, whatever its strides and leading dimensions."""
    if W.ndim == 2:
        return W.addmm_(left, right)
    if W.ndim == 3:
        return W.baddbmm_(left, right)
    for matrix, thin, flat in zip(W.unbind(0), left.unbind(0), right.unbind(0), strict=True):
        add_product_(matrix, thin, flat)
    return W


def check_step(W: Tensor, a: Tensor, b: Tensor, *, variant: Variant) -> None:
    """Raise ``InvalidInputError`` unless ``a b^H`` is a step of W that ``variant`` can take."""
    n, p = W.shape[-2:] if W.ndim >= 2 else (0, 1)
    if n < p:
        raise InvalidInputError(
            f"W must be (..., n, p) with n >= p, got {tuple(W.shape)}",
            code="wide_matrix",
            fix="store the transpose: a wide weight is a transposed frame",
        )
    k = a.shape[-1] if a.ndim >= 2 else 0
    if a.shape != (*W.shape[:-2], n, k) or b.shape != (*W.shape[:-2], p, k):
        raise InvalidInputError(
            f"a step of W {tuple(W.shape)} is a (..., {n}, k) and b (..., {p}, k), "
            f"got {tuple(a.shape)} and {tuple(b.shape)}",
            code="shape_mismatch",
        )
    if not 1 <= k <= p:
        raise InvalidInputError(
            f"rank {k} of the step must be from 1 to {p}, the rank of W",
            code="rank_too_large",
            fix="compress the step, for example with range_finder",
        )
    _check_dtypes(W, a, b)
    if variant not in ("tangent", "direct", "cayley"):
        raise InvalidInputError(f"unknown variant {variant!r}: tangent, direct or cayley")


def _check_dtypes(W: Tensor, a: Tensor, b: Tensor) -> None:
    if not a.dtype == b.dtype == W.dtype:
        raise InvalidInputError(
            f"W, a and b must share a dtype, got {W.dtype}, {a.dtype}, {b.dtype}",
            code="dtype_mismatch",
        )
    if W.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        raise InvalidInputError(
            f"{W.dtype} cannot hold an orthogonal matrix to useful accuracy",
            code="half_precision",
            fix="keep the parameter in float32 and run its products under autocast",
        )


def _adjoint_product(W: Tensor, a: Tensor) -> Tensor:
    """Return ``W^H a`` by conjugating only skinny matrices, never W."""
    return (a.mH @ W).mH


def _grams(a: Tensor, b: Tensor, Wa: Tensor, *, of_steps: bool) -> tuple[Tensor, Tensor]:
    """Return the Gram matrices of ``[b, Wa]`` and of ``a``.

    ``of_steps`` asks for that of F = [W b, a] instead of the first, which shares all blocks but
    the last (equal where W is square).
    """
    k, wide = a.shape[-1], _wide(a.dtype)
    narrow = wide if k < _EXACT_GRAMS else a.dtype
    A, B, C = (x.to(narrow) for x in (a, b, Wa))
    gram_a = (A.mH @ A).to(wide)
    cross = (B.mH @ C).to(wide)
    last = gram_a if of_steps else (C.mH @ C).to(wide)
    upper = torch.cat(((B.mH @ B).to(wide), cross), -1)
    return torch.cat((upper, torch.cat((cross.mH, last), -1)), -2), gram_a


def _balanced(gamma: Tensor, gram_a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Gram of ``[c b, Wa / c]``, that of ``a / c``, and the diagonal that undoes c.

    ``c`` gives both halves one norm: a step of size 1e-18 is then no different from one of
    size 1.
    """
    k = gram_a.shape[-1]
    size_a = gram_a.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    size_b = gamma.diagonal(dim1=-2, dim2=-1)[..., :k].real.sum(-1)
    moves = (size_a > 0) & (size_b > 0)
    c = torch.where(moves, size_a.sqrt() / size_b.sqrt(), 1.0).sqrt()[..., None, None]
    balance = torch.cat((c.expand(*c.shape[:-1], k), (1 / c).expand(*c.shape[:-1], k)), -1)
    return balance.mT * gamma * balance, gram_a / c**2, balance


def _unbalanced(M: Tensor, balance: Tensor) -> Tensor:
    return balance.mT * M * balance


def _skew_form(gamma: Tensor, k: int) -> Tensor:
    """Return ``J = [[0, -I], [I, 0]] / 2``."""
    eye = torch.eye(k, dtype=gamma.dtype, device=gamma.device) / 2
    zero = torch.zeros_like(eye)
    return torch.cat((torch.cat((zero, -eye), -1), torch.cat((eye, zero), -1)), -2)


def _direct_form(gram_a: Tensor) -> Tensor:
    """Return ``[[a^H a, I], [I, 0]]``: ``(W + X)^H (W + X) = I + B K B^H`` with B = [b, W^H a]."""
    eye = torch.eye(gram_a.shape[-1], dtype=gram_a.dtype, device=gram_a.device)
    eye = eye.expand(gram_a.shape)
    upper = torch.cat((gram_a, eye), -1)
    return torch.cat((upper, torch.cat((eye, torch.zeros_like(eye)), -1)), -2)


def _direct_factors(W: Tensor, a: Tensor, b: Tensor, Wb: Tensor, Wa: Tensor, M: Tensor) -> Factors:
    """Return the factors of ``(W + a b^H)(I + B M B^H) - W``."""
    WWa = a if W.shape[-1] == W.shape[-2] else skinny_products(W, a, Wa).Wb
    B = _beside(b, Wa)
    moved = _beside(Wb, WWa) + a @ (b.mH @ B)
    padded = _beside(a, torch.zeros_like(a))
    return Factors(moved @ M + padded, B.mH)


def _beside(x: Tensor, y: Tensor) -> Tensor:
    """Return ``[x, y]``, stored by columns as skinny factors are."""
    return torch.cat((x.mT, y.mT), -2).mT


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, *x.shape[-2:])


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64
