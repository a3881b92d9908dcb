"""The fused rank-k update on the CPU: W is read once, then read and written once.

float32, float64, complex64, complex128; one matrix (its rows shared among the threads of torch)
or many of one shape (whole matrices shared). Compiled by numba on first use and kept on disk, so
that no compiler is needed at install time and nothing is imported, started or compiled before a
step asks for it: a process that only forks stays free of threads.

Partial sums belong to fixed rows and are added in order: for a given number of threads, equal
inputs give equal bits.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from stiefel.unitary.rank_k_update import Products, Variant

Array = Any
_VARIANTS: dict[Variant, int] = {"tangent": 0, "direct": 1, "cayley": 2}
LARGEST_RANK = 16
# Entries under which a second thread costs more than it saves.
_SHARED_FROM = 16384
# Products of so few pairs of rows are done sooner than PyTorch is called.
_FEW = 32


def supports(W: Tensor, rank: int) -> bool:
    """Whether ``step_`` can take a step of this rank: beyond it dense products win."""
    return W.device.type == "cpu" and W.is_contiguous() and rank <= LARGEST_RANK and W.numel() > 0


def step_(
    W: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    variant: Variant = "tangent",
    products: Products | None = None,
    columns: range = range(0),
) -> Tensor | None:
    """Correct the drift of ``columns``, then take the step of ``rank_k_update_``, fused.

    Args:
        W: ``(..., n, p)``, contiguous.
        a: as in ``rank_k_update``, like b, variant and products.
        b: see a.
        variant: see a.
        products: see a; with W as it is, before the correction.
        columns: adjacent columns of W whose orthogonality is restored by one Newton-Schulz step.

    Returns:
        ``(..., p, r)``: ``W^H C - I_r`` of those columns before their correction, or None.
    """
    m, (n, p), k = W.shape[:-2].numel(), W.shape[-2:], a.shape[-1]
    sweep = _Sweep(W.detach().view(m, n, p).numpy(), columns)
    left, right = (_rows(x).reshape(m, k, -1) for x in (a, b))
    if products is None:
        Wb, Wa, residual = sweep.products(left, right)
    else:
        Wb, Wa = (_rows(x).reshape(m, k, -1) for x in products)
        residual = sweep.residual() if columns else None
    if residual is not None:
        inside = slice(columns.start, columns.stop)
        # W^H a of the corrected W; its W b follows row by row inside the update.
        Wa = Wa.copy()
        Wa[:, :, inside] -= _dots(Wa, residual) / 2
    factors = _factors(sweep, left, right, Wb, Wa, variant)
    sweep.update(factors, residual)
    increment_version(W)  # torch did not see numba write: graphs that saved W are out of date
    if residual is None:
        return None
    return torch.from_numpy(residual).mT.reshape(*W.shape[:-2], p, len(columns))


def restore_columns_(W: Tensor, columns: range) -> Tensor:
    """Correct the drift of ``columns`` as ``step_`` does, and take no step."""
    m, (n, p), r = W.shape[:-2].numel(), W.shape[-2:], len(columns)
    sweep = _Sweep(W.detach().view(m, n, p).numpy(), columns)
    residual = sweep.residual()
    shapes = ((m, 0, n), (m, 0, p), (m, r, 0))
    sweep.update(_Factors(*(np.empty(shape, sweep.U.dtype) for shape in shapes)), residual)
    increment_version(W)
    return torch.from_numpy(residual).mT.reshape(*W.shape[:-2], p, r)


class _Factors(NamedTuple):
    """The update is ``U + w^T v``; ``shift`` is what the correction of the columns adds to w."""

    w: Array  # (m, q, n)
    v: Array  # (m, q, p)
    shift: Array  # (m, r, q), per unit of U E


class _Sweep:
    """Sweeps over one stack of matrices, with complex ones seen as real of twice the width."""

    def __init__(self, U: Array, columns: range) -> None:
        self.U, self.columns = U, columns
        self.is_complex = np.iscomplexobj(U)
        self.real = U.view(U.real.dtype) if self.is_complex else U
        width = 2 if self.is_complex else 1
        self.real_columns = range(columns.start * width, columns.stop * width)
        threads = torch.get_num_threads() if U.size >= _SHARED_FROM else 1
        blocks = 1 if U.shape[0] >= 4 * threads else threads
        self.sharing = (blocks, threads)

    def products(self, left: Array, right: Array) -> tuple[Array, Array, Array | None]:
        """Return ``U right``, ``U^H left`` and the residual of the columns, if there are any."""
        dots, sums = self._swept(left, right, self.real_columns)
        if not len(self.columns):
            return dots, sums, None
        k = left.shape[1]
        return dots, sums[:, :k], self._less_identity(sums[:, k:])

    def residual(self) -> Array:
        """Return ``(m, r, p)``: the rows ``(U^H C - I)^T`` of the columns."""
        m, n, p = self.U.shape
        left, right = (np.empty((m, 0, length), self.U.dtype) for length in (n, p))
        return self._less_identity(self._swept(left, right, self.real_columns)[1])

    def dots(self, right: Array) -> Array:
        """Return ``U right``, by rows."""
        m, n, _ = self.U.shape
        return self._swept(np.empty((m, 0, n), self.U.dtype), right, range(0))[0]

    def update(self, factors: _Factors, residual: Array | None) -> None:
        """Correct the columns and add the step."""
        w, v, shift = factors
        E = self.U[:, :0, :] if residual is None else residual
        if self.is_complex:
            w, v, E, shift = _parts(w), _along(v), _against(E), _along(shift)
        arrays = [np.ascontiguousarray(x) for x in (w, v, E, shift)]
        _compiled()[1].update(self.real, *arrays, self.real_columns.start, *self.sharing)

    def _swept(self, left: Array, right: Array, columns: range) -> tuple[Array, Array]:
        if self.is_complex:
            left, right = _parts(left), _against(right)
        sweeps = _compiled()[1]
        dots, acc = sweeps.products(self.real, left, right, columns, *self.sharing)
        sums = _summed(acc)
        if self.is_complex:
            return dots[:, 0::2] + 1j * dots[:, 1::2], _folded(sums)
        return dots, sums

    def _less_identity(self, sums: Array) -> Array:
        for j, column in enumerate(self.columns):
            sums[:, j, column] -= 1
        return sums


@cache
def _compiled() -> tuple[Any, Any]:
    from stiefel.unitary import cpu_core, cpu_sweeps

    return cpu_core, cpu_sweeps


def _rows(x: Tensor) -> Array:
    return x.detach().mT.resolve_conj().contiguous().numpy()


def _factors(
    sweep: _Sweep, left: Array, right: Array, Wb: Array, Wa: Array, variant: Variant
) -> _Factors:
    _, n, p = sweep.U.shape
    k, inside = left.shape[1], slice(sweep.columns.start, sweep.columns.stop)
    M, bB = _middle(left, right, Wa, variant)
    sources = [Wb, left]
    # Row i of U B changes by -(U E)_i / 2 times these entries of B.
    moved = right[:, :, inside].transpose(0, 2, 1) @ M[:, :k]
    if variant == "direct":
        if n != p:
            sources[1] = sweep.dots(Wa)
            moved = moved + Wa[:, :, inside].transpose(0, 2, 1) @ M[:, k:]
        # ([Wb, WWa] + a bB) M + [a, 0] as one product.
        below = bB @ M
        below += np.eye(*below.shape[-2:])
        M, sources = np.concatenate((M, below), axis=1), [*sources, left]
    weights = np.ascontiguousarray(M.transpose(0, 2, 1)).astype(sweep.U.dtype)
    w = _combined(weights, np.concatenate(sources, axis=1))
    v = np.concatenate((right, Wa), axis=1)
    shift = (moved / -2).astype(sweep.U.dtype)
    return _Factors(w, np.conj(v) if sweep.is_complex else v, shift)


def _dots(x: Array, y: Array) -> Array:
    """``x y^H`` (m, k, r) of rows."""
    if np.iscomplexobj(x) or x.shape[1] * y.shape[1] > _FEW:
        return _product(x, y.conj().transpose(0, 2, 1))
    out = np.empty((len(x), x.shape[1], y.shape[1]), x.dtype)
    _compiled()[0].dots(x, y, out)
    return out


def _combined(weights: Array, rows: Array) -> Array:
    """``weights rows`` (m, q, n): sums of rows."""
    if np.iscomplexobj(rows) or weights.shape[1] * weights.shape[2] > _FEW:
        return _product(weights, rows)
    out = np.empty((*weights.shape[:2], rows.shape[2]), rows.dtype)
    _compiled()[0].combined(weights, rows, out)
    return out


def _product(x: Array, y: Array) -> Array:
    """``x y`` on PyTorch's threads: those of numpy's own BLAS would spin on beside them."""
    return torch.matmul(torch.from_numpy(x), torch.from_numpy(y)).numpy()


def _middle(left: Array, right: Array, Wa: Array, variant: Variant) -> tuple[Array, Array]:
    """Return M (m, 2k, 2k) and ``b^H [b, Wa]`` (m, k, 2k) in double precision."""
    is_complex = np.iscomplexobj(left)
    rows = [_along(x) for x in (left, right, Wa)] if is_complex else [left, right, Wa]
    m, k, _ = rows[0].shape
    gamma, M = np.empty((2, m, 2 * k, 2 * k))
    gram_a, bB, balance = np.empty((m, k, k)), np.empty((m, k, 2 * k)), np.empty(m)
    core, _ = _compiled()
    core.grams(*rows, variant == "direct", gamma, gram_a, bB, balance)
    core.small(gamma, gram_a, _VARIANTS[variant], M)
    c2 = balance[:, None, None]
    M[:, :k, :k] *= c2
    M[:, k:, k:] /= c2
    return (_complex(M), _complex(bB)) if is_complex else (M, bB)


def _summed(acc: Array) -> Array:
    total = acc[:, 0]
    for block in range(1, acc.shape[1]):
        total = total + acc[:, block]
    return np.ascontiguousarray(total)


def _parts(x: Array) -> Array:
    """Rows z become the rows Re z, Im z."""
    m, k, n = x.shape
    return np.stack((x.real, x.imag), axis=2).reshape(m, 2 * k, n)


def _against(x: Array) -> Array:
    """Rows b become the interleaved [Re, -Im] and [Im, Re]: dots with them are Re, Im of U b."""
    m, k, p = x.shape
    return np.stack((x.conj(), 1j * x.conj()), axis=2).reshape(m, 2 * k, p).view(x.real.dtype)


def _along(x: Array) -> Array:
    """Rows v become [Re, Im] and [-Im, Re]: weights Re w, Im w of them add w v."""
    m, k, p = x.shape
    return np.stack((x, 1j * x), axis=2).reshape(m, 2 * k, p).view(x.real.dtype)


def _folded(acc: Array) -> Array:
    """Sums of interleaved rows weighted by Re a and Im a become rows of ``U^H a``."""
    re, im = acc[:, 0::2], acc[:, 1::2]
    out = np.empty((*re.shape[:-1], re.shape[-1] // 2), np.result_type(acc.dtype, np.complex64))
    out.real = re[..., 0::2] + im[..., 1::2]
    out.imag = im[..., 0::2] - re[..., 1::2]
    return out


def _complex(x: Array) -> Array:
    """Blocks [[Re z, -Im z], [Im z, Re z]] become z."""
    z: Array = x[:, 0::2, 0::2] + 1j * x[:, 1::2, 0::2]
    return z
