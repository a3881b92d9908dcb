"""The fused rank-k update on CUDA: the Triton twin of ``kernels_cpu``.

The same two sweeps: one read of W for ``W b`` and ``W^H a`` together, one read and write for the
rank-2k update. The 2k x 2k algebra stays in PyTorch (``small_matrices``), without host
synchronisation. Real float32 only; complex, float64 and larger ranks use the eager path. Triton
comes with the CUDA builds of PyTorch; without it ``supports`` is false.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from stiefel.unitary.drift import restore_columns_
from stiefel.unitary.rank_k_update import Products, Variant, update_factors

LARGEST_RANK = 8
# Tiles: a larger one for the products spills registers (ptxas for sm_90, rank 8), and many short
# blocks of rows keep all multiprocessors of a GPU busy at n = 2048.
_PRODUCT_ROWS, _ROWS, _COLUMNS = 16, 64, 64


def supports(W: Tensor, rank: int) -> bool:
    """Whether ``step_`` can take a step of this rank."""
    return (
        W.device.type == "cuda"
        and W.dtype == torch.float32
        and W.is_contiguous()
        and rank <= LARGEST_RANK
        and W.numel() > 0
        and find_spec("triton") is not None
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
    """Take the step of ``rank_k_update_`` with Triton kernels, then restore ``columns``."""
    known = products if products is not None else fused_products(W, a, b)
    left, right = update_factors(W, a, b, variant=variant, products=known)
    fused_update_(W, left, right)
    return restore_columns_(W, columns) if columns else None


def fused_products(W: Tensor, a: Tensor, b: Tensor) -> Products:
    """Return ``W b`` and ``W^T a`` from one read of W ``(..., n, p)``."""
    U, left, right = _flat(W), _rows(a), _rows(b)
    m, n, p = U.shape
    k = left.shape[1]
    blocks = -(-n // _PRODUCT_ROWS)
    dots = torch.empty(m, k, n, device=W.device)
    partial = torch.empty(m, blocks, k, p, device=W.device)
    sizes = {"K": _padded(k), "ROWS": _PRODUCT_ROWS, "COLUMNS": _COLUMNS}
    _kernels()[0][(blocks, m)](U, left, right, dots, partial, n, p, k, blocks, **sizes)
    shape = W.shape[:-2]
    return Products(dots.mT.reshape(*shape, n, k), partial.sum(1).mT.reshape(*shape, p, k))


def fused_update_(W: Tensor, left: Tensor, right: Tensor) -> None:
    """Add ``left @ right`` to W in one read and write; left (..., n, q), right (..., q, p)."""
    U, weights, vectors = _flat(W), _rows(left), _flat(right).contiguous()
    m, n, p = U.shape
    q = vectors.shape[1]
    grid = (-(-n // _ROWS), -(-p // _COLUMNS), m)
    sizes = {"ROWS": _ROWS, "COLUMNS": _COLUMNS}
    _kernels()[1][grid](U, weights, vectors, n, p, q, **sizes)


def _flat(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, *x.shape[-2:])


def _rows(x: Tensor) -> Tensor:
    return _flat(x).mT.contiguous()


def _padded(k: int) -> int:
    return 1 << (k - 1).bit_length()


@cache
def _kernels() -> tuple[Any, Any]:
    from stiefel.unitary import cuda_sweeps

    return cuda_sweeps.products, cuda_sweeps.update
