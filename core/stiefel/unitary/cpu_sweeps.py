"""Compiled sweeps over real matrices: one read for both products, one read-write for the update.

Matrices are ``(m, n, p)`` row-major, float32 or float64; skinny factors are ``(m, k, n)`` or
``(m, k, p)``, one row per vector. A complex matrix is swept as a real one of twice the width
(``kernels_cpu`` prepares the vectors). Columns go in tiles: the vectors of a tile are packed
into one small buffer that stays in the first cache, at constant distances, by which the
compiler can tell that a store to one does not touch another, and use vector instructions.

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
_njit: Any = numba.njit

# Reassociation lets sums run in vector lanes. NaN and infinity keep their meaning.
_MATH = {"reassoc", "contract", "nsz", "arcp"}
# The distance is no power of two: vectors at such distances would share the cache's few places.
_TILE = 2080
# Per group of four vectors: four rows to read, four rows to sum into.
_GROUP = 8 * _TILE


def compiled(function: F) -> F:
    """Compile for one thread; inlined into the parallel entries."""
    result: F = _njit(nogil=True, fastmath=_MATH, boundscheck=False)(function)
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
        result: F = _njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in: a read-only installation without a home
        result = _njit(**options)(function)
    return result


@compiled
def _products_4(u0: Array, u1: Array, u2: Array, u3: Array, a: Array, w: Array, s: Array) -> None:
    """Four rows against four vectors: dots into s, weighted sums of the rows into w."""
    a00, a01, a02, a03, a10, a11, a12, a13 = a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]
    a20, a21, a22, a23, a30, a31, a32, a33 = a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]
    s00, s01, s02, s03, s10, s11, s12, s13 = s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7]
    s20, s21, s22, s23, s30, s31, s32, s33 = s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]
    for c in range(u0.shape[0]):
        x0, x1, x2, x3 = u0[c], u1[c], u2[c], u3[c]
        b0, b1, b2, b3 = w[c], w[_TILE + c], w[2 * _TILE + c], w[3 * _TILE + c]
        s00 += x0 * b0
        s01 += x1 * b0
        s02 += x2 * b0
        s03 += x3 * b0
        s10 += x0 * b1
        s11 += x1 * b1
        s12 += x2 * b1
        s13 += x3 * b1
        s20 += x0 * b2
        s21 += x1 * b2
        s22 += x2 * b2
        s23 += x3 * b2
        s30 += x0 * b3
        s31 += x1 * b3
        s32 += x2 * b3
        s33 += x3 * b3
        w[4 * _TILE + c] += x0 * a00 + x1 * a01 + x2 * a02 + x3 * a03
        w[5 * _TILE + c] += x0 * a10 + x1 * a11 + x2 * a12 + x3 * a13
        w[6 * _TILE + c] += x0 * a20 + x1 * a21 + x2 * a22 + x3 * a23
        w[7 * _TILE + c] += x0 * a30 + x1 * a31 + x2 * a32 + x3 * a33
    s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7] = s00, s01, s02, s03, s10, s11, s12, s13
    s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15] = s20, s21, s22, s23, s30, s31, s32, s33


@compiled
def _products_1(u0: Array, u1: Array, u2: Array, u3: Array, a: Array, w: Array, s: Array) -> None:
    """Four rows against one vector."""
    a0, a1, a2, a3 = a[0], a[1], a[2], a[3]
    s0, s1, s2, s3 = s[0], s[1], s[2], s[3]
    for c in range(u0.shape[0]):
        x0, x1, x2, x3 = u0[c], u1[c], u2[c], u3[c]
        b = w[c]
        s0 += x0 * b
        s1 += x1 * b
        s2 += x2 * b
        s3 += x3 * b
        w[4 * _TILE + c] += x0 * a0 + x1 * a1 + x2 * a2 + x3 * a3
    s[0], s[1], s[2], s[3] = s0, s1, s2, s3


@compiled
def _width(vectors: int) -> int:
    """Columns per tile: whole rows for few vectors, less where many must stay in the cache."""
    return 2048 if vectors <= 2 else (512 if vectors <= 8 else 256)


@compiled
def _pack(vectors: Array, acc: Array, lo: int, hi: int, pack: Array) -> None:
    """Lay the columns lo..hi of the vectors, and of their sums, into the buffer by groups."""
    for j in range(vectors.shape[0]):
        at = j // 4 * _GROUP + j % 4 * _TILE
        for c in range(hi - lo):
            pack[at + c] = vectors[j, lo + c]
            pack[at + 4 * _TILE + c] = acc[j, lo + c]


@compiled
def _unpack(acc: Array, lo: int, hi: int, pack: Array) -> None:
    for j in range(acc.shape[0]):
        at = j // 4 * _GROUP + (4 + j % 4) * _TILE
        for c in range(hi - lo):
            acc[j, lo + c] = pack[at + c]


@compiled
def _block_rows(
    U: Array,
    left: Array,
    dots: Array,
    pack: Array,
    small: Array,
    i: int,
    last: int,
    lo: int,
    hi: int,
) -> None:
    """Rows i..i+3 (the last of them repeated with weight zero at the end) against all vectors."""
    k = left.shape[0]
    rows = min(4, last - i)
    i1, i2, i3 = min(i + 1, last - 1), min(i + 2, last - 1), min(i + 3, last - 1)
    u0, u1, u2, u3 = U[i, lo:hi], U[i1, lo:hi], U[i2, lo:hi], U[i3, lo:hi]
    a, s = small[:16], small[16:]
    for first in range(0, k, 4):
        size = min(4, k - first)
        for j in range(32):
            small[j] = 0
        for j in range(size):
            for r in range(rows):
                a[4 * j + r] = left[first + j, i + r]
        group = first // 4 * _GROUP
        w = pack[group : group + _GROUP]
        if size == 1:
            _products_1(u0, u1, u2, u3, a, w, s)
        else:
            _products_4(u0, u1, u2, u3, a, w, s)
        for j in range(size):
            for r in range(rows):
                dots[first + j, i + r] += s[4 * j + r]


@compiled
def _products_rows(
    U: Array, left: Array, right: Array, dots: Array, acc: Array, first: int, last: int
) -> None:
    k, p = right.shape
    pack = np.zeros((k + 3) // 4 * _GROUP, U.dtype)
    small = np.zeros(32, U.dtype)
    dots[:, first:last] = 0
    acc[:, :] = 0
    width = _width(k)
    for lo in range(0, p, width):
        hi = min(p, lo + width)
        _pack(right, acc, lo, hi, pack)
        for i in range(first, last, 4):
            _block_rows(U, left, dots, pack, small, i, last, lo, hi)
        _unpack(acc, lo, hi, pack)


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
def _update_4(u0: Array, u1: Array, v: Array, x: Array) -> None:
    """Two rows plus four weighted vectors."""
    x0, x1, x2, x3, y0, y1, y2, y3 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
    for c in range(u0.shape[0]):
        v0, v1, v2, v3 = v[c], v[_TILE + c], v[2 * _TILE + c], v[3 * _TILE + c]
        u0[c] += x0 * v0 + x1 * v1 + x2 * v2 + x3 * v3
        u1[c] += y0 * v0 + y1 * v1 + y2 * v2 + y3 * v3


@compiled
def _update_2(u0: Array, u1: Array, v: Array, x: Array) -> None:
    x0, x1, y0, y1 = x[0], x[1], x[4], x[5]
    for c in range(u0.shape[0]):
        v0, v1 = v[c], v[_TILE + c]
        u0[c] += x0 * v0 + x1 * v1
        u1[c] += y0 * v0 + y1 * v1


@compiled
def _gather(u0: Array, u1: Array, sums: Array, s0: float, s1: float) -> None:
    for c in range(u0.shape[0]):
        sums[c] += u0[c] * s0 + u1[c] * s1


@compiled
def _update_pair(U: Array, W: Array, pack: Array, x: Array, i: int, lo: int, hi: int) -> None:
    """Rows i, i+1 plus all weighted vectors."""
    q = W.shape[0]
    u0, u1 = U[i, lo:hi], U[i + 1, lo:hi]
    for first in range(0, q, 4):
        size = min(4, q - first)
        for j in range(size):
            x[j], x[4 + j] = W[first + j, i], W[first + j, i + 1]
        group = first // 4 * _GROUP
        if size == 2:
            _update_2(u0, u1, pack[group : group + _GROUP], x)
        else:
            _update_4(u0, u1, pack[group : group + _GROUP], x)


@compiled
def _update_last(U: Array, W: Array, V: Array, i: int, lo: int, hi: int) -> None:
    u = U[i, lo:hi]
    for j in range(V.shape[0]):
        w, v = W[j, i], V[j, lo:hi]
        for c in range(u.shape[0]):
            u[c] += w * v[c]


@compiled
def _update_rows(
    U: Array, W: Array, V: Array, columns: Array, acc: Array, first: int, last: int
) -> None:
    q, p = V.shape
    pack = np.zeros((q + 3) // 4 * _GROUP, U.dtype)
    none = np.zeros((q, p), U.dtype)
    small = np.zeros(8, U.dtype)
    acc[:, :] = 0
    pairs = first + (last - first) // 2 * 2
    width = _width(q)
    for lo in range(0, p, width):
        hi = min(p, lo + width)
        _pack(V, none, lo, hi, pack)
        for i in range(first, pairs, 2):
            _update_pair(U, W, pack, small, i, lo, hi)
            for r in range(acc.shape[0]):
                _gather(
                    U[i, lo:hi], U[i + 1, lo:hi], acc[r, lo:hi], columns[r, i], columns[r, i + 1]
                )
        if pairs < last:
            _update_last(U, W, V, pairs, lo, hi)
            for r in range(acc.shape[0]):
                zero = columns[r, pairs] * 0
                u = U[pairs, lo:hi]
                _gather(u, u, acc[r, lo:hi], columns[r, pairs], zero)


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
