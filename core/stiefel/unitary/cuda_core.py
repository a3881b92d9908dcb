"""What lies between the two sweeps of ``kernels_cuda``, in Triton: sums, Gram matrices, algebra.

In PyTorch it would be some two hundred launches. Shapes as in ``cuda_sweeps``; grams
(m, parts, 3K + 1, K), float64, one slice per block of positions: b^T b, b^T Wa, a^T a, and in the
last row Wa^T E, E the residual of the column.
"""

from __future__ import annotations

import triton
import triton.language as tl

from stiefel.unitary.cuda_small import matmul, middle


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
    total = _summed(dots + x * dots_matrix, over_n, in_n, k * n, chunks, K, SUMMED, LENGTH)
    tl.store(Wb + x * k * n + over_n, total, mask=in_n)
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
def _weights(gamma, i, j, K: tl.constexpr, VARIANT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Return the (2K, 2K) weights of [W b, a] in the left factor of a square W's update."""
    below, beside = (i == j + K).to(tl.float64), (i + K == j).to(tl.float64)
    corner = gamma
    if VARIANT == 1:
        # a^T a is the last block of gamma: move it up and left.
        corner = matmul(matmul(beside, gamma), below)
    M = middle(gamma, corner, i, j, K, VARIANT, 1e-10)
    if VARIANT == 1:
        # (a (b^T [b, Wa]) M + [a, 0]) as weights of a.
        M += matmul(below, matmul(gamma, M)) + below
    return M
