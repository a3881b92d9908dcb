"""Triton kernels of ``kernels_cuda``; importing this module needs triton.

Shapes as in ``cpu_sweeps``: U (m, n, p); left, dots (m, k, n); right (m, k, p); partial
(m, blocks, k, p), one slice per block of rows, so that the sum over blocks has a fixed order.

Only constexpr arguments are annotated: Triton looks up every other name in an annotation among
the constants of the module, and refuses to compile where it finds none.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def products(  # type: ignore[no-untyped-def]  # noqa: D103 - see the module
    U,
    left,
    right,
    dots,
    partial,
    n,
    p,
    k,
    blocks,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    block, x = tl.program_id(0), tl.program_id(1).to(tl.int64)
    rows = block * ROWS + tl.arange(0, ROWS)
    ranks = tl.arange(0, K)
    in_rows, in_ranks = rows < n, ranks < k
    at_left = left + (x * k + ranks)[:, None] * n + rows[None, :]
    a = tl.load(at_left, mask=in_ranks[:, None] & in_rows[None, :], other=0.0)
    sums = tl.zeros((K, ROWS), tl.float32)
    for first in range(0, p, COLUMNS):
        columns = first + tl.arange(0, COLUMNS)
        in_columns = columns < p
        at = U + (x * n + rows)[:, None] * p + columns[None, :]
        tile = tl.load(at, mask=in_rows[:, None] & in_columns[None, :], other=0.0)
        inside = in_ranks[:, None] & in_columns[None, :]
        b = tl.load(right + (x * k + ranks)[:, None] * p + columns[None, :], mask=inside, other=0.0)
        sums += tl.sum(b[:, None, :] * tile[None, :, :], 2)
        out = partial + ((x * blocks + block) * k + ranks)[:, None] * p + columns[None, :]
        tl.store(out, tl.sum(a[:, :, None] * tile[None, :, :], 1), mask=inside)
    at_dots = dots + (x * k + ranks)[:, None] * n + rows[None, :]
    tl.store(at_dots, sums, mask=in_ranks[:, None] & in_rows[None, :])


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def update(  # type: ignore[no-untyped-def]  # noqa: D103 - see the module
    U,
    weights,
    vectors,
    n,
    p,
    q,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    x = tl.program_id(2).to(tl.int64)
    in_rows, in_columns = rows < n, columns < p
    at = U + (x * n + rows)[:, None] * p + columns[None, :]
    inside = in_rows[:, None] & in_columns[None, :]
    tile = tl.load(at, mask=inside, other=0.0)
    for j in range(q):
        w = tl.load(weights + (x * q + j) * n + rows, mask=in_rows, other=0.0)
        v = tl.load(vectors + (x * q + j) * p + columns, mask=in_columns, other=0.0)
        tile += w[:, None] * v[None, :]
    tl.store(at, tile, mask=inside)
