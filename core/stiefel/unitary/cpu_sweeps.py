"""Compiled sweeps over real matrices: one read for both products, one read-write for the update.

Matrices are ``(m, n, p)`` row-major, float32 or float64; skinny factors are ``(m, k, n)`` or
``(m, k, p)``, one row per vector. A complex matrix is swept as a real one of twice the width
(``kernels_cpu`` prepares the vectors). Columns go in tiles whose vectors stay in the first
cache; rows go four at a time, so that a vector loaded once serves four rows.

Importing this module imports numba; threads start with the first call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
Array = Any
prange: Any = numba.prange

# Reassociation lets sums run in vector lanes. NaN and infinity keep their meaning.
_MATH = {"reassoc", "contract", "nsz", "arcp"}
_TILE_BYTES = 12288


def compiled(function: F) -> F:
    """Compile for one thread; inlined into the parallel entries."""
    result: F = numba.njit(nogil=True, fastmath=_MATH, boundscheck=False)(function)
    return result


def kept(function: F) -> F:
    """Compile for one thread and keep the machine code on disk."""
    return _kept(function, parallel=False)


def parallel(function: F) -> F:
    """Compile with a parallel loop and keep the machine code on disk."""
    return _kept(function, parallel=True)


def _kept(function: F, *, parallel: bool) -> F:
    options = {"nogil": True, "fastmath": _MATH, "boundscheck": False, "parallel": parallel}
    try:
        result: F = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in: a read-only installation without a home
        result = numba.njit(**options)(function)
    return result


@compiled
def _tile(vectors: int, itemsize: int) -> int:
    return max(64, min(1024, _TILE_BYTES // (vectors * itemsize) // 16 * 16))


@compiled
def _products_4(U: Array, left: Array, right: Array, dots: Array, acc: Array, i: int, j: int, lo: int, hi: int) -> None:  # noqa: E501
    """Rows i..i+3 against vectors j..j+3 over columns lo..hi."""
    a00, a01, a02, a03 = left[j, i], left[j, i + 1], left[j, i + 2], left[j, i + 3]
    a10, a11, a12, a13 = left[j + 1, i], left[j + 1, i + 1], left[j + 1, i + 2], left[j + 1, i + 3]
    a20, a21, a22, a23 = left[j + 2, i], left[j + 2, i + 1], left[j + 2, i + 2], left[j + 2, i + 3]
    a30, a31, a32, a33 = left[j + 3, i], left[j + 3, i + 1], left[j + 3, i + 2], left[j + 3, i + 3]
    zero = a00 - a00
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
    for c in range(lo, hi):
        u0, u1, u2, u3 = U[i, c], U[i + 1, c], U[i + 2, c], U[i + 3, c]
        b0, b1, b2, b3 = right[j, c], right[j + 1, c], right[j + 2, c], right[j + 3, c]
        s00 += u0 * b0
        s01 += u1 * b0
        s02 += u2 * b0
        s03 += u3 * b0
        s10 += u0 * b1
        s11 += u1 * b1
        s12 += u2 * b1
        s13 += u3 * b1
        s20 += u0 * b2
        s21 += u1 * b2
        s22 += u2 * b2
        s23 += u3 * b2
        s30 += u0 * b3
        s31 += u1 * b3
        s32 += u2 * b3
        s33 += u3 * b3
        acc[j, c] += u0 * a00 + u1 * a01 + u2 * a02 + u3 * a03
        acc[j + 1, c] += u0 * a10 + u1 * a11 + u2 * a12 + u3 * a13
        acc[j + 2, c] += u0 * a20 + u1 * a21 + u2 * a22 + u3 * a23
        acc[j + 3, c] += u0 * a30 + u1 * a31 + u2 * a32 + u3 * a33
    dots[j, i] += s00
    dots[j, i + 1] += s01
    dots[j, i + 2] += s02
    dots[j, i + 3] += s03
    dots[j + 1, i] += s10
    dots[j + 1, i + 1] += s11
    dots[j + 1, i + 2] += s12
    dots[j + 1, i + 3] += s13
    dots[j + 2, i] += s20
    dots[j + 2, i + 1] += s21
    dots[j + 2, i + 2] += s22
    dots[j + 2, i + 3] += s23
    dots[j + 3, i] += s30
    dots[j + 3, i + 1] += s31
    dots[j + 3, i + 2] += s32
    dots[j + 3, i + 3] += s33


@compiled
def _products_1(U: Array, left: Array, right: Array, dots: Array, acc: Array, i: int, j: int, lo: int, hi: int) -> None:  # noqa: E501
    """Rows i..i+3 against one vector."""
    a0, a1, a2, a3 = left[j, i], left[j, i + 1], left[j, i + 2], left[j, i + 3]
    s0 = s1 = s2 = s3 = a0 - a0
    for c in range(lo, hi):
        u0, u1, u2, u3 = U[i, c], U[i + 1, c], U[i + 2, c], U[i + 3, c]
        b = right[j, c]
        s0 += u0 * b
        s1 += u1 * b
        s2 += u2 * b
        s3 += u3 * b
        acc[j, c] += u0 * a0 + u1 * a1 + u2 * a2 + u3 * a3
    dots[j, i] += s0
    dots[j, i + 1] += s1
    dots[j, i + 2] += s2
    dots[j, i + 3] += s3


@compiled
def _products_row(U: Array, left: Array, right: Array, dots: Array, acc: Array, i: int, j: int, lo: int, hi: int) -> None:  # noqa: E501
    a = left[j, i]
    s = a - a
    for c in range(lo, hi):
        u = U[i, c]
        s += u * right[j, c]
        acc[j, c] += u * a
    dots[j, i] += s


@compiled
def _products_rows(U: Array, left: Array, right: Array, dots: Array, acc: Array, first: int, last: int) -> None:  # noqa: E501
    k, p = right.shape
    tile = _tile(2 * k, U.itemsize)
    fours = first + (last - first) // 4 * 4
    dots[:, first:last] = 0
    acc[:, :] = 0
    for lo in range(0, p, tile):
        hi = min(p, lo + tile)
        for i in range(first, fours, 4):
            whole = k // 4 * 4
            for j in range(0, whole, 4):
                _products_4(U, left, right, dots, acc, i, j, lo, hi)
            for j in range(whole, k):
                _products_1(U, left, right, dots, acc, i, j, lo, hi)
        for i in range(fours, last):
            for j in range(k):
                _products_row(U, left, right, dots, acc, i, j, lo, hi)


@parallel
def products(U: Array, left: Array, right: Array, dots: Array, acc: Array) -> None:
    """Fill ``dots = U right`` and ``acc``, whose sum over blocks is ``U^T left``.

    Shapes: U (m, n, p); left (m, k, n); right (m, k, p); dots (m, k, n); acc (m, blocks, k, p).
    """
    m, n, _ = U.shape
    blocks = acc.shape[1]
    for task in prange(m * blocks):
        x, t = task // blocks, task % blocks
        _products_rows(
            U[x], left[x], right[x], dots[x], acc[x, t], n * t // blocks, n * (t + 1) // blocks
        )


@compiled
def _update_4(U: Array, W: Array, V: Array, i: int, j: int, lo: int, hi: int) -> None:
    """Add four products to rows i..i+3."""
    w00, w01, w02, w03 = W[j, i], W[j, i + 1], W[j, i + 2], W[j, i + 3]
    w10, w11, w12, w13 = W[j + 1, i], W[j + 1, i + 1], W[j + 1, i + 2], W[j + 1, i + 3]
    w20, w21, w22, w23 = W[j + 2, i], W[j + 2, i + 1], W[j + 2, i + 2], W[j + 2, i + 3]
    w30, w31, w32, w33 = W[j + 3, i], W[j + 3, i + 1], W[j + 3, i + 2], W[j + 3, i + 3]
    for c in range(lo, hi):
        v0, v1, v2, v3 = V[j, c], V[j + 1, c], V[j + 2, c], V[j + 3, c]
        U[i, c] += w00 * v0 + w10 * v1 + w20 * v2 + w30 * v3
        U[i + 1, c] += w01 * v0 + w11 * v1 + w21 * v2 + w31 * v3
        U[i + 2, c] += w02 * v0 + w12 * v1 + w22 * v2 + w32 * v3
        U[i + 3, c] += w03 * v0 + w13 * v1 + w23 * v2 + w33 * v3


@compiled
def _update_2(U: Array, W: Array, V: Array, i: int, j: int, lo: int, hi: int) -> None:
    w00, w01, w02, w03 = W[j, i], W[j, i + 1], W[j, i + 2], W[j, i + 3]
    w10, w11, w12, w13 = W[j + 1, i], W[j + 1, i + 1], W[j + 1, i + 2], W[j + 1, i + 3]
    for c in range(lo, hi):
        v0, v1 = V[j, c], V[j + 1, c]
        U[i, c] += w00 * v0 + w10 * v1
        U[i + 1, c] += w01 * v0 + w11 * v1
        U[i + 2, c] += w02 * v0 + w12 * v1
        U[i + 3, c] += w03 * v0 + w13 * v1


@compiled
def _gather(U: Array, columns: Array, acc: Array, i: int, rows: int, lo: int, hi: int) -> None:
    """Add ``rows`` rows from i, weighted by their entries in each followed column, to acc."""
    for r in range(acc.shape[0]):
        if rows == 4:
            s0, s1 = columns[r, i], columns[r, i + 1]
            s2, s3 = columns[r, i + 2], columns[r, i + 3]
            for c in range(lo, hi):
                acc[r, c] += U[i, c] * s0 + U[i + 1, c] * s1 + U[i + 2, c] * s2 + U[i + 3, c] * s3
        else:
            s0 = columns[r, i]
            for c in range(lo, hi):
                acc[r, c] += U[i, c] * s0


@compiled
def _update_rows(U: Array, W: Array, V: Array, columns: Array, acc: Array, first: int, last: int) -> None:  # noqa: E501
    q, p = V.shape
    tile = _tile(q + 2 * acc.shape[0] + 4, U.itemsize)
    fours = first + (last - first) // 4 * 4
    acc[:, :] = 0
    for lo in range(0, p, tile):
        hi = min(p, lo + tile)
        for i in range(first, fours, 4):
            whole = q // 4 * 4
            for j in range(0, whole, 4):
                _update_4(U, W, V, i, j, lo, hi)
            for j in range(whole, q, 2):
                _update_2(U, W, V, i, j, lo, hi)
            _gather(U, columns, acc, i, 4, lo, hi)
        for i in range(fours, last):
            for j in range(q):
                w = W[j, i]
                for c in range(lo, hi):
                    U[i, c] += w * V[j, c]
            _gather(U, columns, acc, i, 1, lo, hi)


@parallel
def update(U: Array, W: Array, V: Array, columns: Array, acc: Array) -> None:
    """Add ``W^T V`` to U and, of the result, fill acc with ``U^T columns`` by blocks.

    Shapes: W (m, q, n), q even; V (m, q, p); columns (m, r, n), the followed columns after the
    update; acc (m, blocks, r, p). r may be 0.
    """
    m, n, _ = U.shape
    blocks = acc.shape[1]
    for task in prange(m * blocks):
        x, t = task // blocks, task % blocks
        _update_rows(
            U[x], W[x], V[x], columns[x], acc[x, t], n * t // blocks, n * (t + 1) // blocks
        )


@compiled
def _dot(u: Array, e: Array) -> Any:
    s = u[0] * e[0]
    for c in range(1, u.shape[0]):
        s += u[c] * e[c]
    return s


@parallel
def correct(U: Array, E: Array, start: int, blocks: int) -> None:
    """Subtract ``U E / 2`` from the columns start, start + 1, ...; E is (m, r, p)."""
    m, n, _ = U.shape
    r = E.shape[1]
    for task in prange(m * blocks):
        x, t = task // blocks, task % blocks
        shift = np.empty(r, U.dtype)
        for i in range(n * t // blocks, n * (t + 1) // blocks):
            for j in range(r):
                shift[j] = _dot(U[x, i], E[x, j])
            for j in range(r):
                U[x, i, start + j] -= shift[j] / 2
