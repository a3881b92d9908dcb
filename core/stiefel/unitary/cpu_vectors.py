"""Two loops over columns, in vector instructions: dots of rows, and sums of weighted rows.

Numba leaves a loop over several rows scalar as soon as LLVM cannot rule out that two of them
overlap. Here the vectors are written out, 64 bytes each; LLVM splits them for machines with
shorter ones. The caller answers for rows that do not overlap and for indices in range.

``ahead`` asks the memory for the rows that many further down while these are in hand: several rows
in short stretches are not the one stream that a processor follows by itself. It may pass the end.

All matrices are two-dimensional and C-contiguous, of one real dtype. Importing this module imports
numba.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils as numba_cgutils
from numba.extending import intrinsic as numba_intrinsic

Value = Any
cgutils: Any = numba_cgutils
intrinsic: Callable[[Callable[..., Any]], Any] = numba_intrinsic
_BYTES = 64
_INDEX = ir.IntType(64)
# A product may be fused into a sum and sums reordered; NaN and infinity keep their meaning.
_FLAGS = ("contract", "reassoc", "nsz")


def dots(rows: int, vectors: int, ahead: int = 0) -> Any:
    """Return ``f(s, at, step, U, i, B, j, lo, hi)``, dot products.

    ``s[at + r * step + q]`` becomes that of ``U[i + r, lo:hi]`` and ``B[j + q, lo:hi]``.
    """

    def emit(loop: _Loop, s: list[Value], first: list[Value], second: list[Value]) -> None:
        builder = loop.builder
        pairs = list(product(range(rows), range(vectors)))
        totals = {kind: [loop.zero(kind) for _ in pairs] for kind in loop.kinds}
        for kind, column in loop.columns():
            loop.fetch(first, column, kind, ahead)
            u = [loop.load(x, column, kind) for x in first]
            b = [loop.load(x, column, kind) for x in second]
            for (r, q), place in zip(pairs, totals[kind], strict=True):
                term = builder.fmul(u[r], b[q], _FLAGS)
                builder.store(builder.fadd(builder.load(place), term, _FLAGS), place)
        vector, scalar = (totals[kind] for kind in loop.kinds)
        for place, wide, narrow in zip(s, vector, scalar, strict=True):
            total = builder.fadd(loop.folded(builder.load(wide)), builder.load(narrow), _FLAGS)
            builder.store(total, place)

    return _over_columns(emit, rows, vectors)


def weighted(rows: int, vectors: int, ahead: int = 0) -> Any:
    """Return ``f(w, at, step, O, i, V, j, lo, hi)``, sums of weighted rows.

    To ``O[i + r, lo:hi]`` is added the sum over q of ``w[at + r * step + q] V[j + q, lo:hi]``.
    """

    def emit(loop: _Loop, w: list[Value], out: list[Value], vectors_at: list[Value]) -> None:
        builder = loop.builder
        weights = [builder.load(place) for place in w]
        spread = {kind: [loop.splat(x, kind) for x in weights] for kind in loop.kinds}
        for kind, column in loop.columns():
            v = [loop.load(x, column, kind) for x in vectors_at]
            loop.fetch(out, column, kind, ahead)
            sums = [loop.load(x, column, kind) for x in out]
            for r, q in product(range(rows), range(vectors)):
                term = builder.fmul(spread[kind][r * vectors + q], v[q], _FLAGS)
                sums[r] = builder.fadd(sums[r], term, _FLAGS)
            for x, value in zip(out, sums, strict=True):
                loop.store(x, column, value)

    return _over_columns(emit, rows, vectors)


class _Loop:
    """Vectors of columns from lo on, then single columns up to hi, of matrices of one width."""

    def __init__(self, builder: Value, scalar: Value, size: int, bounds: tuple[Value, ...]) -> None:
        self.builder = builder
        self.lo, self.hi, self.width = bounds
        self.align = size
        self.lanes = _BYTES // size
        self.kinds = (ir.VectorType(scalar, self.lanes), scalar)

    def columns(self) -> Iterator[tuple[Value, Value]]:
        """Yield (type, column) once for vectors and once for the rest; the body lands inside."""
        builder = self.builder
        length = builder.and_(builder.sub(self.hi, self.lo), _INDEX(-self.lanes))
        whole = builder.add(self.lo, length)
        for kind, start, stop in zip(self.kinds, (self.lo, whole), (whole, self.hi), strict=True):
            step = _INDEX(self.lanes if kind is self.kinds[0] else 1)
            with cgutils.for_range_slice(builder, start, stop, step, _INDEX) as (column, _):
                yield kind, column

    def zero(self, kind: Value) -> Value:
        place = cgutils.alloca_once(self.builder, kind)
        self.builder.store(ir.Constant(kind, None if kind is self.kinds[0] else 0.0), place)
        return place

    def load(self, row: Value, column: Value, kind: Value) -> Value:
        at = self.builder.bitcast(self.builder.gep(row, [column]), kind.as_pointer())
        return self.builder.load(at, align=self.align)

    def fetch(self, rows: list[Value], column: Value, kind: Value, ahead: int) -> None:
        """Ask for the vectors ``ahead`` rows further down, before they are needed."""
        if not ahead or kind is not self.kinds[0]:
            return
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        entry = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        fetch = cgutils.get_or_insert_function(self.builder.module, entry, "llvm.prefetch.p0")
        offset = self.builder.add(column, self.builder.mul(self.width, _INDEX(ahead)))
        for row in rows:
            at = self.builder.bitcast(self.builder.gep(row, [offset]), byte)
            self.builder.call(fetch, [at, word(0), word(2), word(1)])

    def store(self, row: Value, column: Value, value: Value) -> None:
        at = self.builder.gep(row, [column])
        at = self.builder.bitcast(at, value.type.as_pointer())
        self.builder.store(value, at, align=self.align)

    def splat(self, value: Value, kind: Value) -> Value:
        if kind is not self.kinds[0]:
            return value
        one = self.builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.IntType(32)(0))
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), self.lanes), None)
        return self.builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros)

    def folded(self, vector: Value) -> Value:
        """The sum of a vector's lanes, by halves."""
        half = self.lanes // 2
        while half:
            mask = ir.VectorType(ir.IntType(32), half)
            parts = [
                self.builder.shuffle_vector(
                    vector, vector, ir.Constant(mask, list(range(first, first + half)))
                )
                for first in (0, half)
            ]
            vector = self.builder.fadd(*parts, _FLAGS)
            half //= 2
        return self.builder.extract_element(vector, ir.IntType(32)(0))


def _over_columns(emit: Callable[..., None], rows: int, vectors: int) -> Any:
    @intrinsic
    def loop(
        _: Any, s: Any, at: Any, step: Any, A: Any, i: Any, B: Any, j: Any, lo: Any, hi: Any
    ) -> tuple[Any, Callable[..., Value]]:
        index = types.intp
        signature = types.void(s, index, index, A, index, B, index, index, index)

        def codegen(context: Any, builder: Value, sig: Any, args: Any) -> Value:
            flat, first, second = (
                context.make_array(sig.args[x])(context, builder, args[x]) for x in (0, 3, 5)
            )
            _, at, step, _, i, _, j, lo, hi = args
            dtype = sig.args[0].dtype
            bounds = (lo, hi, builder.extract_value(first.shape, 1))
            emit(
                _Loop(builder, context.get_value_type(dtype), dtype.bitwidth // 8, bounds),
                _places(builder, flat.data, (at, step), rows, vectors),
                _rows(builder, first, i, rows),
                _rows(builder, second, j, vectors),
            )
            return context.get_dummy_value()

        return signature, codegen

    return loop


def _places(
    builder: Value, data: Value, layout: tuple[Value, Value], rows: int, vectors: int
) -> list[Value]:
    at, step = layout
    starts = [builder.add(at, builder.mul(step, _INDEX(r))) for r in range(rows)]
    return [
        builder.gep(data, [builder.add(start, _INDEX(q))])
        for start, q in product(starts, range(vectors))
    ]


def _rows(builder: Value, matrix: Value, first: Value, count: int) -> list[Value]:
    columns = builder.extract_value(matrix.shape, 1)
    starts = [builder.mul(builder.add(first, _INDEX(r)), columns) for r in range(count)]
    return [builder.gep(matrix.data, [start]) for start in starts]
