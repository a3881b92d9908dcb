"""The two sweeps over W of ``kernels_cuda`` in Triton; importing this module needs triton.

Shapes: U (m, n, p), contiguous; a (m, n, k) and b (m, p, k) with any strides; partial sums, one
slice per block so that their sum has a fixed order: dots (m, chunks, k, n), sums (m, blocks, k, p),
residuals (m, blocks, p); left (m, 2k, n), right (m, k, p), residual (m, p), shift (m, 2k) and
delta (m, k) as in ``cuda_core``. ``column`` is the column whose drift is corrected.

Only constexpr arguments are annotated: Triton looks up every other name in an annotation among
the constants of the module, and refuses to compile where it finds none. ``column`` differs from
step to step: specialised on it, a kernel would be compiled anew for 1 and for multiples of 16.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["column"])  # type: ignore[untyped-decorator, unused-ignore]
def products(  # type: ignore[no-untyped-def]  # noqa: D103 - see the module
    U,
    a,
    b,
    dots,
    sums,
    residuals,
    n,
    p,
    k,
    a_matrix,
    a_row,
    a_rank,
    b_matrix,
    b_row,
    b_rank,
    column,
    K: tl.constexpr,
    PRODUCTS: tl.constexpr,
    DRIFT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    block, chunk, x = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    blocks, chunks = tl.num_programs(0), tl.num_programs(1)
    columns = chunk * COLUMNS + tl.arange(0, COLUMNS)
    ranks = tl.arange(0, K)
    in_columns, in_ranks = columns < p, ranks < k
    inside = in_ranks[:, None] & in_columns[None, :]
    if PRODUCTS:
        at_b = b + x * b_matrix + columns[None, :] * b_row + ranks[:, None] * b_rank
        right = tl.load(at_b, mask=inside, other=0.0)
        below = tl.zeros((K, COLUMNS), tl.float32)
    if DRIFT:
        drift = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, BLOCK, ROWS):
        rows = block * BLOCK + first + tl.arange(0, ROWS)
        in_rows = rows < n
        at = U + (x * n + rows)[:, None] * p + columns[None, :]
        tile = tl.load(at, mask=in_rows[:, None] & in_columns[None, :], other=0.0)
        if PRODUCTS:
            here = in_ranks[:, None] & in_rows[None, :]
            at_a = a + x * a_matrix + rows[None, :] * a_row + ranks[:, None] * a_rank
            left = tl.load(at_a, mask=here, other=0.0)
            below += tl.sum(left[:, :, None] * tile[None, :, :], 1)
            at_dots = dots + ((x * chunks + chunk) * k + ranks)[:, None] * n + rows[None, :]
            tl.store(at_dots, tl.sum(right[:, None, :] * tile[None, :, :], 2), mask=here)
        if DRIFT:
            own = tl.load(U + (x * n + rows) * p + column, mask=in_rows, other=0.0)
            drift += tl.sum(own[:, None] * tile, 0)
    if PRODUCTS:
        at_sums = sums + ((x * blocks + block) * k + ranks)[:, None] * p + columns[None, :]
        tl.store(at_sums, below, mask=inside)
    if DRIFT:
        tl.store(residuals + (x * blocks + block) * p + columns, drift, mask=in_columns)


@triton.jit(do_not_specialize=["column"])  # type: ignore[untyped-decorator, unused-ignore]
def update(  # type: ignore[no-untyped-def]  # noqa: D103 - see the module
    U,
    left,
    b,
    right,
    residual,
    shift,
    delta,
    n,
    p,
    b_matrix,
    b_row,
    b_rank,
    column,
    RANK: tl.constexpr,
    DRIFT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> None:
    rows, x = tl.program_id(0) * ROWS + tl.arange(0, ROWS), tl.program_id(1).to(tl.int64)
    in_rows = rows < n
    here = U + (x * n + rows)[:, None] * p
    moved = tl.zeros((ROWS,), tl.float32)
    own = tl.zeros((ROWS,), tl.float32)
    if DRIFT:
        for first in range(0, p, COLUMNS):
            columns = first + tl.arange(0, COLUMNS)
            inside = in_rows[:, None] & (columns < p)[None, :]
            tile = tl.load(here + columns[None, :], mask=inside, other=0.0)
            e = tl.load(residual + x * p + columns, mask=columns < p, other=0.0)
            moved += tl.sum(tile * e[None, :], 1)
        own = -0.5 * moved
        for j in tl.static_range(RANK):
            w = tl.load(left + (x * 2 * RANK + RANK + j) * n + rows, mask=in_rows, other=0.0)
            w += tl.load(shift + x * 2 * RANK + RANK + j) * moved
            own += w * tl.load(delta + x * RANK + j)
    # Backwards, because the columns read last above are still in the cache.
    tiles = tl.cdiv(p, COLUMNS)
    for tile_index in range(0, tiles):
        columns = (tiles - 1 - tile_index) * COLUMNS + tl.arange(0, COLUMNS)
        in_columns = columns < p
        inside = in_rows[:, None] & in_columns[None, :]
        tile = tl.load(here + columns[None, :], mask=inside, other=0.0)
        for j in tl.static_range(RANK):
            w = tl.load(left + (x * 2 * RANK + j) * n + rows, mask=in_rows, other=0.0)
            z = tl.load(left + (x * 2 * RANK + RANK + j) * n + rows, mask=in_rows, other=0.0)
            if DRIFT:
                w += tl.load(shift + x * 2 * RANK + j) * moved
                z += tl.load(shift + x * 2 * RANK + RANK + j) * moved
            at_b = b + x * b_matrix + columns * b_row + j * b_rank
            v = tl.load(at_b, mask=in_columns, other=0.0)
            y = tl.load(right + (x * RANK + j) * p + columns, mask=in_columns, other=0.0)
            tile += w[:, None] * v[None, :] + z[:, None] * y[None, :]
        if DRIFT:
            tile += tl.where((columns == column)[None, :], own[:, None], 0.0)
        tl.store(here + columns[None, :], tile, mask=inside)
