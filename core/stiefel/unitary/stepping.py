"""One step with the best kernel for its device: fused CPU, fused CUDA, or eager PyTorch."""

from __future__ import annotations

from torch import Tensor

from stiefel.unitary import kernels_cpu, kernels_cuda
from stiefel.unitary.drift import restore_before_step_, restore_columns_
from stiefel.unitary.rank_k_update import Products, Variant, check_step, rank_k_update_


def step_(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
    columns: range = range(0),
) -> Tensor | None:
    """Restore ``columns`` of W, then take the step of ``rank_k_update_``; all kernels agree.

    Args:
        W: ``(..., n, p)``, changed in place.
        a: as in ``rank_k_update``, like b, variant and products.
        b: see a.
        variant: see a.
        products: see a; with W as it is, before its columns are restored.
        columns: adjacent columns for one Newton-Schulz step against drift; none by default.

    Returns:
        The residual of ``restore_columns_``, or None without columns.
    """
    check_step(W, a, b, variant=variant)
    rank = a.shape[-1]
    if kernels_cpu.supports(W, rank):
        return kernels_cpu.step_(W, a, b, variant=variant, products=products, columns=columns)
    if kernels_cuda.supports(W, rank):
        return kernels_cuda.step_(W, a, b, variant=variant, products=products, columns=columns)
    residual = None
    if columns:
        fused = kernels_cpu.supports(W, 1)
        restore = kernels_cpu.restore_columns_ if fused else restore_columns_
        residual, products = restore_before_step_(W, a, b, products, columns, restore=restore)
    rank_k_update_(W, a, b, variant=variant, products=products)
    return residual
