"""One step with the best kernel for its device: fused CPU, fused CUDA, or eager PyTorch."""

from __future__ import annotations

from torch import Tensor

from stiefel.linalg.precision import in_whole_precision
from stiefel.unitary import kernels_cpu, kernels_cuda
from stiefel.unitary.drift import restore_columns_
from stiefel.unitary.rank_k_update import Products, Variant, check_step, rank_k_update_


@in_whole_precision
def step_(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
    columns: range = range(0),
) -> Tensor | None:
    """Take the step of ``rank_k_update_`` and restore ``columns`` of W; all kernels agree.

    The fused kernels restore before the step, as they read the residual on the way (on CUDA one
    column); elsewhere it is done after it, as products that are known beforehand then stay true.
    The results differ by the defect of those columns times the size of the step.

    Args:
        W: ``(..., n, p)``, changed in place.
        a: as in ``rank_k_update``, like b, variant and products.
        b: see a.
        variant: see a.
        products: see a; with W as it is, before anything is restored.
        columns: adjacent columns for one Newton-Schulz step against drift; none by default.

    Returns:
        The residual of ``restore_columns_``, or None without columns.
    """
    check_step(W, a, b, variant=variant)
    rank = a.shape[-1]
    if kernels_cpu.supports(W, rank):
        return kernels_cpu.step_(W, a, b, variant=variant, products=products, columns=columns)
    if kernels_cuda.supports(W, rank, variant):
        return kernels_cuda.step_(W, a, b, variant=variant, products=products, columns=columns)
    rank_k_update_(W, a, b, variant=variant, products=products)
    if not columns:
        return None
    restore = kernels_cpu.restore_columns_ if kernels_cpu.supports(W, 1) else restore_columns_
    return restore(W, columns)
