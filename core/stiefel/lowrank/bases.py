"""New orthonormal directions for a basis. All functions batch over leading dimensions.

The bases U of low-rank training grow by the span of a gradient K' that is orthogonal to U.
Two kernels compute it: Householder QR of [U | K'], which never fails, and a blocked
Cholesky QR, which runs at the speed of matrix products and is checked pass by pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Algorithm = Literal["auto", "householder", "cholesky"]

# Householder QR is the faster kernel up to this width of the new block: n = 500 to 2000, two CPU
# threads, blocks one by one or stacked. (From 12 to 16 on the two differ by a fifth at most.)
NARROW = 11

# Most numbers in one stack of blocks, 4 MB in float32: beyond, products outweigh the calls.
STACK = 2**20


def complement(basis: Tensor, block: Tensor, *, algorithm: Algorithm = "auto") -> Tensor:
    """Return orthonormal columns Q with ``basis^T Q = 0`` and span [basis|Q] containing ``block``.

    Args:
        basis: ``(..., n, r)`` with orthonormal columns, float32 or float64.
        block: ``(..., n, k)``; finite. At most n - r columns are used, the first ones.
        algorithm: ``householder``, ``cholesky`` or by width.

    Returns:
        ``(..., n, min(k, n - r))``. Directions that ``block`` does not determine (it is rank
        deficient, or zero) are filled with arbitrary orthonormal ones, so that the shape
        never depends on the data.

    Cost: about 8 n r k + 4 n k^2 flops by Cholesky, 4 n (r + k)^2 by Householder.
    Source: Yamamoto et al., Electron. Trans. Numer. Anal. 44 (2015); Fukaya et al.,
    SIAM J. Sci. Comput. 42 (2020), for the shift.
    """
    width = min(block.shape[-1], basis.shape[-2] - basis.shape[-1])
    block = block[..., :width]
    if width == 0:
        return block
    if algorithm == "cholesky" or (algorithm == "auto" and width > NARROW):
        columns = _cholesky(basis, block)
        if columns is not None:
            return columns
    return _householder(basis, block)


def complements(bases: Sequence[Tensor], blocks: Sequence[Tensor]) -> list[Tensor]:
    """Return :func:`complement` of every pair; small pairs of equal shape are worked on together.

    A network has many layers of one shape, and a small block's cost is that of its some twenty
    calls (eight of 500 x 50: 7.0 ms one by one, 4.2 stacked; of 768 x 16: 4.4 and 1.2).
    """
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, (basis, block) in enumerate(zip(bases, blocks, strict=True)):
        alike[basis.shape, block.shape, basis.dtype, basis.device].append(index)
    found: dict[int, Tensor] = {}
    for members in alike.values():
        most = STACK // max(1, blocks[members[0]].numel())
        size = most if min(most, len(members)) > 2 else 1
        for start in range(0, len(members), size):
            part = members[start : start + size]
            pair = [bases[i] for i in part], [blocks[i] for i in part]
            found.update(zip(part, _together(*pair), strict=True))
    return [found[index] for index in range(len(bases))]


def _together(bases: list[Tensor], blocks: list[Tensor]) -> Sequence[Tensor]:
    if len(bases) == 1:
        return [complement(bases[0], blocks[0])]
    return complement(torch.stack(bases), torch.stack(blocks)).unbind()


def reorthonormalize(basis: Tensor) -> tuple[Tensor, Tensor]:
    """Return (Q, R) with ``basis = Q R`` to second order in the defect, by one Newton step.

    For a basis whose columns are orthonormal up to accumulated rounding (defect below 1e-2):
    the defect is squared. R is ``(..., r, r)`` and belongs into the core.
    """
    gram = basis.mT @ basis
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    return basis @ (1.5 * eye - 0.5 * gram), 0.5 * (eye + gram)


def _householder(basis: Tensor, block: Tensor) -> Tensor:
    """QR of both: the trailing columns are orthogonal to the basis whatever the block is.

    LAPACK works on the one copy that is stored by columns: half of the memory of
    ``torch.linalg.qr`` and, from about 100 columns on, half of its time.
    """
    rank = basis.shape[-1]
    both = torch.cat((basis.mT, block.mT), dim=-2).mT
    # Columns of gradients can be so small that their squares underflow.
    norms = torch.linalg.vector_norm(both[..., rank:], dim=-2, keepdim=True)
    both[..., rank:] /= norms.clamp_min_(torch.finfo(norms.dtype).tiny)
    scales = both.new_empty((*both.shape[:-2], both.shape[-1]))
    torch.geqrf(both, out=(both, scales))
    torch.linalg.householder_product(both, scales, out=both)
    return both[..., rank:].contiguous()


def _cholesky(basis: Tensor, block: Tensor) -> Tensor | None:
    """Two passes of projection and Cholesky QR; None when the block is too ill-conditioned.

    The first pass leaves a defect of about eps / pivot^2, at most 4e-3; the second squares it.
    """
    columns: Tensor = block / torch.linalg.vector_norm(block, dim=-2, keepdim=True)
    eps = torch.finfo(block.dtype).eps
    eye = torch.eye(block.shape[-1], dtype=block.dtype, device=block.device)
    for shift in (4 * eps * block.shape[-1], 0.0):
        inner = basis.mT @ columns
        # In place: one n x k buffer less.
        columns = (
            columns.addmm_(basis, inner, alpha=-1) if columns.ndim == 2 else columns - basis @ inner
        )
        # Rounding may make the Gram matrix of the first pass indefinite.
        factor, info = torch.linalg.cholesky_ex(columns.mT @ columns + shift * eye)
        # A column that lay in the span of the others, or in the basis, is only noise now.
        if int(info.amax()) or not float(factor.diagonal(dim1=-2, dim2=-1).amin()) > 16 * eps**0.5:
            return None
        # An inverse of width k and a product run faster than a triangular solve of height n.
        inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
        columns = columns @ inverse.mT
    return columns
