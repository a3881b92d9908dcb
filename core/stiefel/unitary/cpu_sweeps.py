"""Compiled sweeps over real matrices: one read for the products, one read-write for the update.

Matrices are ``(m, n, p)`` row-major, float32 or float64; skinny factors are ``(m, k, n)`` or
``(m, k, p)``, one row per vector. A complex matrix is swept as a real one of twice the width
(``kernels_cpu`` prepares the vectors). Four rows are in hand at a time, and of them a stretch of
columns short enough to stay in the first cache while every vector passes over it.

Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stiefel.unitary.cpu_tasks import Task, compiled, inlined, matrix, next_task, number
from stiefel.unitary.cpu_vectors import dots, weighted

Array = Any
# Columns in hand at a time.
_STRETCH = 512


def _make_add_dots(rows: int) -> Any:
    four, two, one = (dots(rows, size, ahead=rows) for size in (4, 2, 1))

    @inlined
    def add_dots(
        U: Array, i: int, B: Array, lo: int, hi: int, s: Array, out: Array, to: int
    ) -> None:
        """Add to ``out[q, to + r]`` the dot product of ``U[i + r]`` and ``B[q]``."""
        k, j = B.shape[0], 0
        while j < k:
            size = 4 if k - j >= 4 else (2 if k - j >= 2 else 1)
            if size == 4:
                four(s, 0, 4, U, i, B, j, lo, hi)
            elif size == 2:
                two(s, 0, 2, U, i, B, j, lo, hi)
            else:
                one(s, 0, 1, U, i, B, j, lo, hi)
            for q in range(size):
                for r in range(rows):
                    out[j + q, to + r] += s[r * size + q]
            j += size

    return add_dots


def _make_add_sums(rows: int) -> Any:
    four, two, one = (weighted(size, rows) for size in (4, 2, 1))

    @inlined
    def add_sums(U: Array, i: int, w: Array, lo: int, hi: int, acc: Array) -> None:
        """Add ``U[i + r]`` times ``w[j * rows + r]`` to ``acc[j]``."""
        k, j = acc.shape[0], 0
        while j < k:
            if k - j >= 4:
                four(w, j * rows, rows, acc, j, U, i, lo, hi)
                j += 4
            elif k - j >= 2:
                two(w, j * rows, rows, acc, j, U, i, lo, hi)
                j += 2
            else:
                one(w, j * rows, rows, acc, j, U, i, lo, hi)
                j += 1

    return add_sums


def _make_move(rows: int) -> Any:
    four, two, one = (weighted(rows, size, ahead=rows) for size in (4, 2, 1))

    @inlined
    def move(U: Array, i: int, w: Array, lo: int, hi: int, V: Array) -> None:
        """Add ``V[j]`` times ``w[r * q + j]`` to ``U[i + r]``."""
        q, j = V.shape[0], 0
        while j < q:
            if q - j >= 4:
                four(w, j, q, U, i, V, j, lo, hi)
                j += 4
            elif q - j >= 2:
                two(w, j, q, U, i, V, j, lo, hi)
                j += 2
            else:
                one(w, j, q, U, i, V, j, lo, hi)
                j += 1

    return move


def _make_products(rows: int) -> Any:
    add_dots, add_sums = _make_add_dots(rows), _make_add_sums(rows)

    @inlined
    def products_of_rows(
        U: Array,
        i: int,
        left: Array,
        right: Array,
        start: int,
        sums: Array,
        acc: Array,
        lo: int,
        hi: int,
        w: Array,
        s: Array,
    ) -> None:
        k = left.shape[0]
        for j in range(acc.shape[0]):
            for x in range(rows):
                w[j * rows + x] = left[j, i + x] if j < k else U[i + x, start + j - k]
        for at in range(lo, hi, _STRETCH):
            to = min(hi, at + _STRETCH)
            add_dots(U, i, right, at, to, s, sums, i)
            add_sums(U, i, w, at, to, acc)

    return products_of_rows


@compiled
def _own(size: int, like: Array) -> Array:
    """Working memory with a margin: in one cache line with another thread's it would crawl."""
    return np.empty(size + 64, like.dtype)[32 : 32 + size]


_products_4, _products_1 = _make_products(4), _make_products(1)


@compiled
def _products_share(
    U: Array,
    left: Array,
    right: Array,
    start: int,
    sums: Array,
    acc: Array,
    first: int,
    last: int,
) -> None:
    w, s = _own(4 * acc.shape[0] + 4, U), _own(16, U)
    acc[:, :] = 0
    sums[:, first:last] = 0
    p = U.shape[1]
    # Many sums over whole rows would not stay in the second cache: then some columns at a time.
    width = p if acc.shape[0] <= 4 else 1024
    whole = first + (last - first) // 4 * 4
    for lo in range(0, p, width):
        hi = min(p, lo + width)
        for i in range(first, whole, 4):
            _products_4(U, i, left, right, start, sums, acc, lo, hi, w, s)
        for i in range(whole, last):
            _products_1(U, i, left, right, start, sums, acc, lo, hi, w, s)


def _products(data: Any) -> None:
    blocks, n, p, start, kl, kr, r = (
        number(data, 0),
        number(data, 1),
        number(data, 2),
        number(data, 3),
        number(data, 4),
        number(data, 5),
        number(data, 6),
    )
    task = next_task(data)
    while task >= 0:
        x, t = task // blocks, task % blocks
        _products_share(
            matrix(data, 7, x, n, p),
            matrix(data, 8, x, kl, n),
            matrix(data, 9, x, kr, p),
            start,
            matrix(data, 10, x, kr, n),
            matrix(data, 11, task, kl + r, p),
            n * t // blocks,
            n * (t + 1) // blocks,
        )
        task = next_task(data)


def _make_update(rows: int) -> Any:
    add_dots, move = _make_add_dots(rows), _make_move(rows)

    @inlined
    def update_rows(
        U: Array,
        i: int,
        W: Array,
        V: Array,
        E: Array,
        G: Array,
        start: int,
        w: Array,
        s: Array,
        d: Array,
    ) -> None:
        q, r, p = V.shape[0], E.shape[0], U.shape[1]
        for x in range(rows):
            for j in range(q):
                w[x * q + j] = W[j, i + x]
        if r:
            d[:, :] = 0
            for at in range(0, p, _STRETCH):
                add_dots(U, i, E, at, min(p, at + _STRETCH), s, d, 0)
            for y in range(r):
                for x in range(rows):
                    U[i + x, start + y] -= d[y, x] / 2
                    for j in range(q):
                        w[x * q + j] += d[y, x] * G[y, j]
        for at in range(0, p, _STRETCH):
            move(U, i, w, at, min(p, at + _STRETCH), V)

    return update_rows


_update_4, _update_1 = _make_update(4), _make_update(1)


@compiled
def _update_share(
    U: Array, W: Array, V: Array, E: Array, G: Array, start: int, first: int, last: int
) -> None:
    w, s = _own(4 * V.shape[0] + 4, U), _own(16, U)
    d = _own(4 * E.shape[0], U).reshape(E.shape[0], 4)
    whole = first + (last - first) // 4 * 4
    for i in range(first, whole, 4):
        _update_4(U, i, W, V, E, G, start, w, s, d)
    for i in range(whole, last):
        _update_1(U, i, W, V, E, G, start, w, s, d)


def _update(data: Any) -> None:
    blocks, n, p, start, q, r = (
        number(data, 0),
        number(data, 1),
        number(data, 2),
        number(data, 3),
        number(data, 4),
        number(data, 5),
    )
    task = next_task(data)
    while task >= 0:
        x, t = task // blocks, task % blocks
        _update_share(
            matrix(data, 6, x, n, p),
            matrix(data, 7, x, q, n),
            matrix(data, 8, x, q, p),
            matrix(data, 9, x, r, p),
            matrix(data, 10, x, r, q),
            start,
            n * t // blocks,
            n * (t + 1) // blocks,
        )
        task = next_task(data)


_products_task, _update_task = Task(_products), Task(_update)


def products(
    U: Array, left: Array, right: Array, columns: range, blocks: int, threads: int
) -> tuple[Array, Array]:
    """Return ``U right`` (m, kr, n), and by blocks ``U^T [left, U[:, columns]]``, from one read.

    Shapes: U (m, n, p); left (m, kl, n); right (m, kr, p). The second result is
    (m, blocks, kl + r, p); its sum over blocks is the product.
    """
    m, n, p = U.shape
    kl, kr, r = left.shape[1], right.shape[1], len(columns)
    sums = np.empty((m, kr, n), U.dtype)
    acc = np.empty((m, blocks, kl + r, p), U.dtype)
    numbers = (blocks, n, p, columns.start, kl, kr, r)
    _products_task.run(m * blocks, threads, numbers, (U, left, right, sums, acc))
    return sums, acc


def update(
    U: Array,
    W: Array,
    V: Array,
    E: Array,
    G: Array,
    start: int,
    blocks: int,
    threads: int,
) -> None:
    """Correct the columns from ``start`` on and add the rank-q step, in one read and write.

    With ``d = U E`` of U as it is: the columns lose ``d / 2``, and U gains ``(W + G d)^T V``.
    Shapes: W (m, q, n); V (m, q, p); E (m, r, p), r >= 0; G (m, r, q).
    """
    m, n, p = U.shape
    numbers = (blocks, n, p, start, V.shape[1], E.shape[1])
    _update_task.run(m * blocks, threads, numbers, (U, W, V, E, G))
