"""What lies between the two sweeps of ``kernels_cuda``, in Triton: sums, Gram matrices, algebra.

The formulas of ``small_matrices`` in float64, without the cost of some two hundred launches.
Shapes as in ``cuda_sweeps``; grams (m, parts, 3K + 1, K), float64, one slice per block of
positions: b^T b, b^T Wa, a^T a, and Wa^T E in the last row, E the residual of the column.
"""

from __future__ import annotations

import triton
import triton.language as tl

TANGENT, DIRECT, CAYLEY = 0, 1, 2


@triton.jit(do_not_specialize=["column"])  # type: ignore[untyped-decorator, unused-ignore]
def gathered(  # type: ignore[no-untyped-def]  # noqa: D103 - see the module
    a,
    b,
    dots,
    sums,
    residuals,
    Wb,
    Wa,
    residual,
    grams,
    n,
    p,
    k,
    chunks,
    blocks,
    sweeps,
    dots_matrix,
    sums_matrix,
    residuals_matrix,
    a_matrix,
    a_row,
    a_rank,
    b_matrix,
    b_row,
    b_rank,
    column,
    K: tl.constexpr,
    DRIFT: tl.constexpr,
    SUMMED: tl.constexpr,
    SWEPT: tl.constexpr,
    LENGTH: tl.constexpr,
) -> None:
    part, x = tl.program_id(0), tl.program_id(1).to(tl.int64)
    at = part * LENGTH + tl.arange(0, LENGTH)
    ranks = tl.arange(0, K)
    in_n, in_p = (ranks < k)[:, None] & (at < n)[None, :], (ranks < k)[:, None] & (at < p)[None, :]
    over_n, over_p = ranks[:, None] * n + at[None, :], ranks[:, None] * p + at[None, :]
    C = _summed(dots + x * dots_matrix, over_n, in_n, k * n, chunks, K, SUMMED, LENGTH)
    tl.store(Wb + x * k * n + over_n, C, mask=in_n)
    C = _summed(sums + x * sums_matrix, over_p, in_p, k * p, blocks, K, SUMMED, LENGTH)
    tl.store(Wa + x * k * p + over_p, C, mask=in_p)
    at_a = a + x * a_matrix + at[None, :] * a_row + ranks[:, None] * a_rank
    at_b = b + x * b_matrix + at[None, :] * b_row + ranks[:, None] * b_rank
    A = tl.load(at_a, mask=in_n, other=0.0).to(tl.float64)
    B = tl.load(at_b, mask=in_p, other=0.0).to(tl.float64)
    C = C.to(tl.float64)
    out = grams + (x * tl.num_programs(0) + part) * (3 * K + 1) * K + ranks * K
    for j in range(k):
        own = (ranks == j)[:, None]
        b_j, c_j, a_j = (
            tl.sum(tl.where(own, B, 0.0), 0),
            tl.sum(tl.where(own, C, 0.0), 0),
            tl.sum(tl.where(own, A, 0.0), 0),
        )
        tl.store(out + j, tl.sum(B * b_j[None, :], 1))
        tl.store(out + K * K + j, tl.sum(B * c_j[None, :], 1))
        tl.store(out + 2 * K * K + j, tl.sum(A * a_j[None, :], 1))
    if DRIFT:
        zero, first = tl.arange(0, 1), residuals + x * residuals_matrix
        only = (at < p)[None, :]
        E = _summed(first, zero[:, None] + at[None, :], only, p, sweeps, 1, SWEPT, LENGTH)
        E -= tl.where((at == column)[None, :], 1.0, 0.0)
        tl.store(residual + x * p + zero[:, None] + at[None, :], E, mask=only)
        last = grams + (x * tl.num_programs(0) + part) * (3 * K + 1) * K + 3 * K * K
        tl.store(last + ranks, tl.sum(C * E.to(tl.float64), 1))


@triton.jit(do_not_specialize=["column"])  # type: ignore[untyped-decorator, unused-ignore]
def core(  # type: ignore[no-untyped-def]
    a,
    b,
    Wb,
    grams,
    left,
    shift,
    delta,
    n,
    k,
    parts,
    a_matrix,
    a_row,
    a_rank,
    b_matrix,
    b_row,
    b_rank,
    column,
    K: tl.constexpr,
    VARIANT: tl.constexpr,
    DRIFT: tl.constexpr,
    SUMMED: tl.constexpr,
    LENGTH: tl.constexpr,
) -> None:
    """Every program repeats the algebra, which takes no longer than once, then fills its rows."""
    Q: tl.constexpr = 2 * K
    block, x = tl.program_id(0), tl.program_id(1).to(tl.int64)
    each, grams_x = (3 * K + 1) * K, grams + x * parts * (3 * K + 1) * K
    index = tl.arange(0, Q)
    i, j = index[:, None], index[None, :]
    upper, before = i < K, j < K
    # [[b b, b Wa], [(b Wa)^T, a a]] from the three blocks below each other.
    at = tl.where(upper, tl.where(before, i * K + j, K * K + i * K + j - K), 0)
    at = tl.where(
        upper, at, tl.where(before, K * K + j * K + i - K, 2 * K * K + (i - K) * K + j - K)
    )
    known = ((i % K) < k) & ((j % K) < k)
    gamma = _summed(grams_x, at, known, each, parts, Q, SUMMED, Q)
    at_column = tl.zeros((Q,), tl.float64)
    if DRIFT:
        second = (index >= K) & (index < K + k)
        wanted = second[None, :]
        zero = tl.arange(0, 1)[:, None]
        at_delta = 3 * K * K + j - K + zero
        change = tl.sum(_summed(grams_x, at_delta, wanted, each, parts, 1, SUMMED, Q), 0) * -0.5
        entry = tl.load(
            b + x * b_matrix + column * b_row + index * b_rank, mask=index < k, other=0.0
        )
        at_column = entry.to(tl.float64)
        gamma += at_column[:, None] * change[None, :] + change[:, None] * at_column[None, :]
        if block == 0:
            tl.store(delta + x * k + index - K, change.to(tl.float32), mask=second)
    weights = _weights(gamma, i, j, K, VARIANT)
    rows = block * LENGTH + tl.arange(0, LENGTH)
    in_rows = (rows < n)[None, :]
    first, second = (index < k)[:, None], ((index >= K) & (index < K + k))[:, None]
    F = tl.load(Wb + (x * k + i) * n + rows[None, :], mask=first & in_rows, other=0.0)
    at_a = a + x * a_matrix + rows[None, :] * a_row + (i - K) * a_rank
    F += tl.load(at_a, mask=second & in_rows, other=0.0)
    narrow = weights.to(tl.float32)
    out = tl.sum(narrow[:, :, None] * F[:, None, :], 0)
    place = tl.where(index < K, index, index - K + k)
    at_left = left + (x * 2 * k + place)[:, None] * n + rows[None, :]
    tl.store(at_left, out, mask=(first | second) & in_rows)
    if DRIFT and block == 0:
        moved = tl.sum(weights * at_column[:, None], 0) * -0.5
        stored = (index < k) | ((index >= K) & (index < K + k))
        tl.store(shift + x * 2 * k + place, moved.to(tl.float32), mask=stored)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _summed(  # type: ignore[no-untyped-def]
    first, at, inside, step, count, ROWS: tl.constexpr, SUMMED: tl.constexpr, LENGTH: tl.constexpr
):
    """Sum ``count`` arrays (ROWS, LENGTH), ``step`` apart, SUMMED at a time in a fixed order."""
    total = tl.zeros((ROWS, LENGTH), first.dtype.element_ty)
    for begin in range(0, count, SUMMED):
        which = begin + tl.arange(0, SUMMED)
        mask = (which < count)[:, None, None] & inside[None, :, :]
        where = first + which[:, None, None].to(tl.int64) * step + at[None, :, :]
        total += tl.sum(tl.load(where, mask=mask, other=0.0), 0)
    return total


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
    out = _middle(own, corner, i, j, K, VARIANT, ACCURACY)
    if COMPLEX:
        tl.store(M + x * 4 * r * r * W + at + i % 2, out, mask=known & ((j % 2) == 0))
    else:
        tl.store(M + x * 4 * r * r + at, out, mask=known)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _weights(gamma, i, j, K: tl.constexpr, VARIANT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the (2K, 2K) weights of [W b, a] in the left factor of a square W's update."""
    below, beside = (i == j + K).to(tl.float64), (i + K == j).to(tl.float64)
    corner = gamma
    if VARIANT == 1:
        # a^T a is the last block of gamma: move it up and left.
        corner = _matmul(_matmul(beside, gamma), below)
    M = _middle(gamma, corner, i, j, K, VARIANT, 1e-10)
    if VARIANT == 1:
        # (a (b^T [b, Wa]) M + [a, 0]) as weights of a.
        M += _matmul(below, _matmul(gamma, M)) + below
    return M


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _middle(  # type: ignore[no-untyped-def]
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
    x = _matmul(gamma * balance, form)
    if VARIANT == 0:
        M = _matmul(form, _phi_1(x, one, ACCURACY))
    elif VARIANT == 2:
        M = _matmul(form, _inverse(one - x * 0.5, one, i, j))
    else:
        x += one
        M = -_matmul(form, _inverse(x + _square_root(x, one, i, j), one, i, j))
    return M * balance


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _matmul(x, y):  # type: ignore[no-untyped-def]
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
        value = one + _matmul(x, value) / (degree + 1.0)
        degree -= 1.0
    for _ in range(doublings):
        value += _matmul(_matmul(x, value), value) * 0.5
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
        Y = _matmul(Y, one + inverse) * 0.5
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
