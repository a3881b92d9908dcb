"""The fused rank-k update on CUDA: the Triton twin of ``kernels_cpu``.

A sweep reads W for ``W b``, ``W^T a`` and the residual of a drift column; then come sums and Gram
matrices, the 2k x 2k algebra, and the sweep that corrects the column and adds the rank-2k step:
four launches. From rank 3 on cuBLAS multiplies, and what lies between stays two launches. No host
synchronisation, so that a step can be part of a CUDA graph. Sums of partial sums have a fixed
order: equal inputs give equal bits.

Real float32 only; complex, float64 and larger ranks use PyTorch with ``cuda_algebra`` for the
small matrices.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from stiefel.unitary import cuda_algebra
from stiefel.unitary.drift import restore_columns_
from stiefel.unitary.rank_k_update import Products, Variant, add_product_

LARGEST_RANK = 8
# Rank up to which sweeps in Triton beat the skinny products of cuBLAS.
_SWEPT_RANK = 2
_LARGE = 1 << 22  # entries from which wide tiles keep every multiprocessor of an H100 busy
_LENGTH = 64  # positions per program between the sweeps


class Tiles(NamedTuple):
    """Sizes that only the speed depends on, as measured on an H100."""

    block: int  # rows of W per program of the first sweep
    rows: int
    columns: int


def _tiles(entries: int) -> Tiles:
    return Tiles(64, 8, 256) if entries >= _LARGE else Tiles(64, 16, 64)


def supports(W: Tensor, rank: int, variant: Variant = "tangent") -> bool:
    """Whether ``step_`` can take a step of this rank."""
    return (
        W.device.type == "cuda"
        and W.dtype == torch.float32
        and W.is_contiguous()
        and rank <= LARGEST_RANK
        and W.numel() > 0
        and (variant != "direct" or W.shape[-1] == W.shape[-2])
        and cuda_algebra.available()
    )


def step_(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
    columns: range = range(0),
) -> Tensor | None:
    """Correct the drift of ``columns`` and take the step of ``rank_k_update_``.

    One column is corrected before the step, on the way, as on the CPU; several after it.
    """
    drift = len(columns) == 1
    # Triton launches on the current device.
    with torch.cuda.device_of(W):  # type: ignore[no-untyped-call]
        residual = _Step(W, a, b, columns.start if drift else None).take(variant, products)
    increment_version(W)  # torch did not see Triton write: graphs that saved W are out of date
    if columns and not drift:
        return restore_columns_(W, columns)
    return residual


class _Step:
    """One step of a stack of matrices, launch by launch."""

    def __init__(self, W: Tensor, a: Tensor, b: Tensor, column: int | None) -> None:
        self.W, self.drift, self.column = W, column is not None, column or 0
        self.U, self.a, self.b = (x.detach().reshape(-1, *x.shape[-2:]) for x in (W, a, b))
        self.m, self.n, self.p = self.U.shape
        self.k = a.shape[-1]
        self.K = cuda_algebra.padded(self.k)
        self.strides = (*self.a.stride(), *self.b.stride())

    def take(self, variant: Variant, products: Products | None) -> Tensor | None:
        """Launch everything; return the residual of the drift column, if there is one."""
        m, n, p, k = self.m, self.n, self.p, self.k
        dots, sums, residuals = self._partial(products)
        Wb, Wa, residual = self._new(k, n), self._new(k, p), self._new(1, p)
        parts = -(-n // _LENGTH)
        grams = self._new(parts, (3 * self.K + 1) * self.K, dtype=torch.float64)
        left, shift, delta = self._new(2 * k, n), self._new(2, k), self._new(1, k)
        sizes: dict[str, Any] = {"K": self.K, "DRIFT": self.drift, "LENGTH": _LENGTH}
        counts = [x.shape[1] for x in (dots, sums, residuals)]
        firsts = [x.stride(0) for x in (dots, sums, residuals)]
        kernels = _kernels()
        kernels.gathered[(parts, m)](
            self.a, self.b, dots, sums, residuals, Wb, Wa, residual, grams, n, p, k, *counts,
            *firsts, *self.strides, self.column, **sizes,
            SUMMED=16 if max(counts[:2]) > 1 else 1, SWEPT=16 if counts[2] > 1 else 1,
        )  # fmt: skip
        kernels.core[(parts, m)](
            self.a, self.b, Wb, grams, left, shift, delta, n, k, parts, *self.strides,
            self.column, **sizes, VARIANT=cuda_algebra.VARIANTS[variant], SUMMED=8, num_warps=2,
        )  # fmt: skip
        if k > _SWEPT_RANK:
            self._add(left, Wa, residual, shift, delta)
        else:
            kernels.update[(-(-n // 4), m)](
                self.U, left, self.b, Wa, residual, shift, delta, n, p, *self.strides[3:],
                self.column, RANK=k, DRIFT=self.drift, ROWS=4,
                COLUMNS=min(1024, cuda_algebra.padded(p)), num_warps=8,
            )  # fmt: skip
        return residual.mT.reshape(*self.W.shape[:-2], p, 1) if self.drift else None

    def _partial(self, products: Products | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return W b, W^T a and the residual's W^T c: by rows, each as one or more summands."""
        if products is not None:
            flat = (x.detach().reshape(-1, *x.shape[-2:]) for x in products)
            dots, sums = (x.mT.contiguous()[:, None] for x in flat)
            # Without a drift column nobody reads the third.
            return dots, sums, self._swept(dots, sums) if self.drift else sums
        if self.k > _SWEPT_RANK:
            return self._multiplied()
        tiles = _tiles(self.U.numel())
        dots = self._new(-(-self.p // tiles.columns), self.k, self.n)
        sums = self._new(-(-self.n // tiles.block), self.k, self.p)
        return dots, sums, self._swept(dots, sums, both=True)

    def _swept(self, dots: Tensor, sums: Tensor, *, both: bool = False) -> Tensor:
        """Sweep over W for the residual of the column, and with ``both`` the products."""
        tiles = _tiles(self.U.numel())
        blocks, chunks = -(-self.n // tiles.block), -(-self.p // tiles.columns)
        residuals = self._new(blocks if self.drift else 1, self.p)
        _kernels().products[(blocks, chunks, self.m)](
            self.U, self.a, self.b, dots, sums, residuals, self.n, self.p, self.k, *self.strides,
            self.column, K=self.K, PRODUCTS=both, DRIFT=self.drift, BLOCK=tiles.block,
            ROWS=tiles.rows, COLUMNS=tiles.columns,
        )  # fmt: skip
        return residuals

    def _multiplied(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same from two products of cuBLAS."""
        rows = self.a.mT
        if self.drift:
            rows = torch.cat((rows, self.U[:, :, self.column, None].mT), 1)
        below = _product(rows, self.U)
        dots = _product(self.b.mT, self.U.mT)
        return dots[:, None], below[:, None, : self.k], below[:, -1:]

    def _add(
        self, left: Tensor, Wa: Tensor, residual: Tensor, shift: Tensor, delta: Tensor
    ) -> None:
        """Correct the column and add the step as ``update`` does, by cuBLAS."""
        if self.drift:
            moved = _product(residual, self.U.mT)
            left = torch.baddbmm(left, shift.reshape(self.m, 2 * self.k, 1), moved)
            own = torch.baddbmm(moved, delta, left[:, self.k :], beta=-0.5)
            add_product_(self.U, left.mT, torch.cat((self.b.mT, Wa), 1))
            self.U[:, :, self.column] += own[:, 0]
        else:
            add_product_(self.U, left.mT, torch.cat((self.b.mT, Wa), 1))

    def _new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(self.m, *shape, dtype=dtype, device=self.U.device)


def _product(x: Tensor, y: Tensor) -> Tensor:
    return (x[0] @ y[0])[None] if len(x) == 1 else x @ y


class _Kernels(NamedTuple):
    products: Any
    gathered: Any
    core: Any
    update: Any


@cache
def _kernels() -> _Kernels:
    from stiefel.unitary import cuda_core, cuda_sweeps

    return _Kernels(cuda_sweeps.products, cuda_core.gathered, cuda_core.core, cuda_sweeps.update)
