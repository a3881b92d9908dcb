"""The 2k x 2k algebra of a rank-k update, compiled: float64 for every dtype.

The formulas of ``small_matrices`` without the cost of forty small tensor operations. Complex
matrices come as real ones of twice the size, each entry z a block [[Re z, -Im z], [Im z, Re z]]:
products, inverses and roots commute with that, so one compiled version serves all. Loops are
written out because that compiles several times faster than array expressions.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stiefel.unitary.cpu_tasks import compiled, kept

Array = Any
TANGENT, DIRECT, CAYLEY = 0, 1, 2


@compiled
def _matmul(x: Array, y: Array, out: Array) -> None:
    q = x.shape[0]
    for i in range(q):
        for j in range(q):
            out[i, j] = 0.0
        for l in range(q):  # noqa: E741 - the summed index of every textbook
            for j in range(q):
                out[i, j] += x[i, l] * y[l, j]


@compiled
def _axpby(alpha: float, x: Array, beta: float, shift: float, out: Array) -> None:
    """``out = alpha x + beta out + shift I``; a factor of 0 does not read, be it NaN or not."""
    q = x.shape[0]
    for i in range(q):
        for j in range(q):
            value = 0.0
            if alpha != 0.0:
                value += alpha * x[i, j]
            if beta != 0.0:
                value += beta * out[i, j]
            out[i, j] = value
        out[i, i] += shift


@compiled
def _inverse(x: Array, out: Array, work: Array) -> None:
    """Gauss-Jordan with partial pivoting."""
    q = x.shape[0]
    _axpby(1.0, x, 0.0, 0.0, work)
    _axpby(0.0, x, 0.0, 1.0, out)
    for col in range(q):
        pivot = col
        for i in range(col + 1, q):
            if abs(work[i, col]) > abs(work[pivot, col]):
                pivot = i
        scale = 1 / work[pivot, col]
        for j in range(q):
            work[col, j], work[pivot, j] = work[pivot, j] * scale, work[col, j]
            out[col, j], out[pivot, j] = out[pivot, j] * scale, out[col, j]
        if pivot == col:
            # The swap above then kept the unscaled row: scale it now.
            for j in range(q):
                work[col, j] *= scale
                out[col, j] *= scale
        for i in range(q):
            f = work[i, col]
            if i != col and f != 0.0:
                for j in range(q):
                    work[i, j] -= f * work[col, j]
                    out[i, j] -= f * out[col, j]


@compiled
def _phi_1(x: Array, value: Array, s: Array, t: Array) -> None:
    """``value = (e^x - 1) / x``; overwrites x."""
    q = x.shape[0]
    norm = 0.0
    for j in range(q):
        total = 0.0
        for i in range(q):
            total += abs(x[i, j])
        norm = max(norm, total)
    doublings = 0
    while norm > 0.5 and doublings < 60:
        norm /= 2
        doublings += 1
    _axpby(0.0, x, 2.0**-doublings, 0.0, x)
    degree, size = 1, norm / 2
    while size > 1e-17:
        degree += 1
        size *= norm / (degree + 1)
    _axpby(0.0, x, 0.0, 1.0, value)
    for term in range(degree, 0, -1):
        _matmul(x, value, s)
        _axpby(1.0 / (term + 1), s, 0.0, 1.0, value)
    for _ in range(doublings):
        _matmul(x, value, s)
        _matmul(s, value, t)
        _axpby(0.5, t, 1.0, 0.0, value)
        _axpby(0.0, x, 2.0, 0.0, x)


@compiled
def _square_root(A: Array, Y: Array, M: Array, s: Array, t: Array) -> None:
    """Denman-Beavers in product form: ``Y = A^(1/2)``."""
    q = A.shape[0]
    _axpby(1.0, A, 0.0, 0.0, M)
    _axpby(1.0, A, 0.0, 0.0, Y)
    for _ in range(40):
        residual = 0.0
        for i in range(q):
            for j in range(q):
                residual += abs(M[i, j] - (1.0 if i == j else 0.0))
        _inverse(M, s, t)
        _axpby(0.25, s, 0.25, 0.5, M)
        _axpby(0.0, s, 0.5, 0.5, s)
        _matmul(Y, s, t)
        _axpby(1.0, t, 0.0, 0.0, Y)
        # The iterate after this one errs by the square of the residual before it.
        if not residual > 1e-8:
            break


@compiled
def _apply_form(gram_a: Array, variant: int, x: Array, out: Array) -> None:
    """``out = K x``: K is [[0, -I], [I, 0]] / 2, or [[a^H a, I], [I, 0]] for direct."""
    q = x.shape[0]
    k = q // 2
    for i in range(k):
        for j in range(q):
            if variant == DIRECT:
                out[i, j], out[k + i, j] = x[k + i, j], x[i, j]
                for l in range(k):  # noqa: E741
                    out[i, j] += gram_a[i, l] * x[l, j]
            else:
                out[i, j], out[k + i, j] = -0.5 * x[k + i, j], 0.5 * x[i, j]


@kept
def dots(x: Array, y: Array, out: Array) -> None:
    """``out = x y^T`` (m, k, r) for rows x (m, k, p) and y (m, r, p), real."""
    m, k, p = x.shape
    for index in range(m):
        for i in range(k):
            for j in range(y.shape[1]):
                total = x[index, i, 0] * y[index, j, 0]
                for c in range(1, p):
                    total += x[index, i, c] * y[index, j, c]
                out[index, i, j] = total


@kept
def combined(weights: Array, rows: Array, out: Array) -> None:
    """``out = weights rows`` (m, q, n) for rows (m, s, n), real."""
    m, s, n = rows.shape
    for index in range(m):
        for i in range(weights.shape[1]):
            for c in range(n):
                out[index, i, c] = weights[index, i, 0] * rows[index, 0, c]
            for j in range(1, s):
                for c in range(n):
                    out[index, i, c] += weights[index, i, j] * rows[index, j, c]


@kept
def small(gamma: Array, gram_a: Array, variant: int, M: Array) -> None:
    """Fill M (m, 2k, 2k) from the Gram matrices (m, 2k, 2k) and (m, k, k)."""
    m, q, _ = gamma.shape
    work = np.empty((6, q, q))
    x, y, z = work[0], work[1], work[2]
    for index in range(m):
        # gamma K is (K^H gamma)^H, and K^H is -K, or K itself for direct.
        _apply_form(gram_a[index], variant, gamma[index], y)
        sign = 1.0 if variant == DIRECT else -1.0
        for i in range(q):
            for j in range(q):
                x[i, j] = sign * y[j, i]
        if variant == TANGENT:
            _phi_1(x, y, work[3], work[4])
        elif variant == CAYLEY:
            _axpby(0.0, x, -0.5, 1.0, x)
            _inverse(x, y, work[3])
        else:
            _axpby(0.0, x, 1.0, 1.0, x)
            _square_root(x, z, work[3], work[4], work[5])
            _axpby(-1.0, z, -1.0, 0.0, x)
            _inverse(x, y, work[3])
        _apply_form(gram_a[index], variant, y, M[index])


@kept
def grams(  # noqa: C901 - six nested loops are one formula
    a: Array,
    b: Array,
    Wa: Array,
    direct: bool,
    gamma: Array,
    gram_a: Array,
    bB: Array,
    balance: Array,
) -> None:
    """Fill the balanced Gram matrices and, for direct, ``bB = b^H [b, Wa]``.

    a (m, k, n); b, Wa (m, k, p), rows; gamma (m, 2k, 2k); gram_a (m, k, k); bB (m, k, 2k);
    balance (m,) the c^2 of ``rank_k_update``. Sums run in double precision.
    """
    m, k, n = a.shape
    p = b.shape[2]
    for x in range(m):
        for i in range(k):
            for j in range(k):
                first, cross, last = 0.0, 0.0, 0.0
                for c in range(p):
                    first += np.float64(b[x, i, c]) * np.float64(b[x, j, c])
                    cross += np.float64(b[x, i, c]) * np.float64(Wa[x, j, c])
                for c in range(n):
                    last += np.float64(a[x, i, c]) * np.float64(a[x, j, c])
                bB[x, i, j], bB[x, i, k + j], gram_a[x, i, j] = first, cross, last
        norm_a, norm_b = 0.0, 0.0
        for i in range(k):
            norm_a += gram_a[x, i, i]
            norm_b += bB[x, i, i]
        c2 = np.sqrt(norm_a / norm_b) if norm_a > 0.0 and norm_b > 0.0 else 1.0
        balance[x] = c2
        for i in range(k):
            for j in range(k):
                gram_a[x, i, j] /= c2
                gamma[x, i, j] = bB[x, i, j] * c2
                gamma[x, i, k + j] = bB[x, i, k + j]
                gamma[x, k + j, i] = bB[x, i, k + j]
                gamma[x, k + i, k + j] = gram_a[x, i, j]
                if direct and n != p:
                    inside = 0.0
                    for c in range(p):
                        inside += np.float64(Wa[x, i, c]) * np.float64(Wa[x, j, c])
                    gamma[x, k + i, k + j] = inside / c2
