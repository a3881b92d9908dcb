"""The 2k x 2k algebra of ``small_matrices`` in Triton: float64, in registers, one program each.

``i`` and ``j`` are the indices of rows and columns, ``one`` the identity. Products are sums over a
broadcast third axis: Triton's own want operands of 16 and more.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def small(  # type: ignore[no-untyped-def]
    gamma,
    gram,
    M,
    k,
    COMPLEX: tl.constexpr,
    K: tl.constexpr,
    VARIANT: tl.constexpr,
    ACCURACY: tl.constexpr,
) -> None:
    """Fill M (m, 2r, 2r) from gamma (m, 2r, 2r) and gram, a^H a (m, r, r), any real or complex.

    k is r, or 2 r with COMPLEX: each entry z is then seen as [[Re z, -Im z], [Im z, Re z]].
    """
    Q: tl.constexpr = 2 * K
    W: tl.constexpr = 2 if COMPLEX else 1
    x, index = tl.program_id(0).to(tl.int64), tl.arange(0, Q)
    i, j = index[:, None], index[None, :]
    r = k // W
    place = tl.where(index < K, index, index - K + k)
    known = ((i % K) < k) & ((j % K) < k)
    part, sign = 0, 1.0
    if COMPLEX:
        part = ((i % 2) != (j % 2)).to(tl.int32)
        sign = tl.where(((i % 2) == 0) & ((j % 2) == 1), -1.0, 1.0).to(tl.float64)
    at = ((place[:, None] // W) * 2 * r + place[None, :] // W) * W
    own = tl.load(gamma + x * 4 * r * r * W + at + part, mask=known, other=0.0) * sign
    first = known & (i < K) & (j < K)
    at_gram = ((i // W) * r + j // W) * W + part
    corner = tl.load(gram + x * r * r * W + at_gram, mask=first, other=0.0) * sign
    out = middle(own, corner, i, j, K, VARIANT, ACCURACY)
    if COMPLEX:
        tl.store(M + x * 4 * r * r * W + at + i % 2, out, mask=known & ((j % 2) == 0))
    else:
        tl.store(M + x * 4 * r * r + at, out, mask=known)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def middle(  # type: ignore[no-untyped-def]
    gamma, corner, i, j, K: tl.constexpr, VARIANT: tl.constexpr, ACCURACY: tl.constexpr
):
    """Return M of ``small_matrices``; corner holds a^T a where direct asks for it."""
    one, below = (i == j).to(tl.float64), (i == j + K).to(tl.float64)
    beside = (i + K == j).to(tl.float64)
    size_b = tl.sum(tl.sum(tl.where((i == j) & (i < K), gamma, 0.0), 1), 0)
    size_a = tl.sum(tl.sum(tl.where((i == j) & (i >= K), gamma, 0.0), 1), 0)
    moves = (size_a > 0) & (size_b > 0)
    c = tl.sqrt(tl.sqrt(tl.where(moves, size_a, 1.0)) / tl.sqrt(tl.where(moves, size_b, 1.0)))
    balance = tl.where(i < K, c, 1 / c) * tl.where(j < K, c, 1 / c)
    form = (below - beside) * 0.5
    if VARIANT == 1:
        form = corner / (c * c) + below + beside
    x = matmul(gamma * balance, form)
    if VARIANT == 0:
        M = matmul(form, _phi_1(x, one, ACCURACY))
    elif VARIANT == 2:
        M = matmul(form, _inverse(one - x * 0.5, one, i, j))
    else:
        x += one
        M = -matmul(form, _inverse(x + _square_root(x, one, i, j), one, i, j))
    return M * balance


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def matmul(x, y):  # type: ignore[no-untyped-def]
    """``x y``."""
    return tl.sum(x[:, :, None] * y[None, :, :], 1)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _phi_1(x, one, ACCURACY: tl.constexpr):  # type: ignore[no-untyped-def]
    """``(e^x - 1) / x`` by Taylor, scaling and doubling, as in ``small_matrices.phi_1``."""
    norm = tl.max(tl.sum(tl.abs(x), 0), 0)
    doublings = 0
    while (norm > 0.5) & (doublings < 60):
        norm *= 0.5
        x *= 0.5
        doublings += 1
    degree, size = tl.full((), 1.0, tl.float64), norm * 0.5
    while (size > ACCURACY) & (degree < 14.0):
        degree += 1.0
        size *= norm / (degree + 1.0)
    value = one
    while degree > 0.5:
        value = one + matmul(x, value) / (degree + 1.0)
        degree -= 1.0
    for _ in range(doublings):
        value += matmul(matmul(x, value), value) * 0.5
        x *= 2.0
    return value


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _square_root(A, one, i, j):  # type: ignore[no-untyped-def]
    """Denman-Beavers in product form, as in ``small_matrices.square_root``."""
    M, Y = A, A
    done, residual = 0, tl.sum(tl.sum(tl.abs(M - one), 1), 0)
    # The iterate after the last errs by the square of the residual before it.
    last = 0
    while (last == 0) & (done < 40):
        last = (residual <= 1e-8).to(tl.int32)
        inverse = _inverse(M, one, i, j)
        Y = matmul(Y, one + inverse) * 0.5
        M = (one + (M + inverse) * 0.5) * 0.5
        residual = tl.sum(tl.sum(tl.abs(M - one), 1), 0)
        done += 1
    return Y


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _inverse(x, one, i, j):  # type: ignore[no-untyped-def]
    """Gauss-Jordan with partial pivoting."""
    out = one
    for col in range(x.shape[0]):
        column = tl.sum(tl.where(j == col, x, 0.0), 1)[:, None]
        size = tl.where(i >= col, tl.abs(column), -1.0)
        # The first of the largest; NaN is no larger than anything and leaves the row in place.
        largest = tl.max(tl.max(size, 1), 0)
        pivot = tl.min(tl.min(tl.where((size >= largest) & (i >= col), i, x.shape[0]), 1), 0)
        pivot = tl.where(pivot < x.shape[0], pivot, col)
        scale = 1.0 / tl.sum(tl.sum(tl.where(i == pivot, column, 0.0), 1), 0)
        kept = tl.sum(tl.sum(tl.where(i == col, column, 0.0), 1), 0)
        chosen = tl.sum(tl.where(i == pivot, x, 0.0), 0)[None, :] * scale
        chosen_out = tl.sum(tl.where(i == pivot, out, 0.0), 0)[None, :] * scale
        x = tl.where(i == pivot, tl.sum(tl.where(i == col, x, 0.0), 0)[None, :], x)
        out = tl.where(i == pivot, tl.sum(tl.where(i == col, out, 0.0), 0)[None, :], out)
        factor = tl.where(i == pivot, kept, column)
        x = tl.where(i == col, chosen, x - factor * chosen)
        out = tl.where(i == col, chosen_out, out - factor * chosen_out)
    return out
