"""The fused rank-k update on the CPU: W is read once, then read and written once.

float32, float64, complex64, complex128; one matrix (its rows shared among the threads of torch)
or many of one shape (whole matrices shared). Compiled by numba on first use and kept on disk, so
that no compiler is needed at install time and nothing is imported, started or compiled before a
step asks for it: a process that only forks stays free of threads.

Every thread owns fixed rows and partial sums are added in order: for a given number of
threads, equal inputs give equal bits.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stiefel.unitary.rank_k_update import Products, Variant

Array = Any
_VARIANTS: dict[Variant, int] = {"tangent": 0, "direct": 1, "cayley": 2}
# Numba's fallback thread pool must not be entered twice at once.
_POOL = threading.Lock()
LARGEST_RANK = 16


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
    """Take the step of ``rank_k_update_`` and correct the drift of ``columns``, fused.

    Args:
        W: ``(..., n, p)``, contiguous.
        a: as in ``rank_k_update``, like b, variant and products.
        b: see a.
        variant: see a.
        products: see a.
        columns: adjacent columns of W whose orthogonality is restored by one Newton-Schulz step.

    Returns:
        ``(..., p, r)``: ``W^H C - I_r`` of those columns before their correction, or None.
    """
    m, (n, p), k = W.shape[:-2].numel(), W.shape[-2:], a.shape[-1]
    U = W.detach().view(m, n, p).numpy()
    rows = [_rows(x) for x in (a, b)]
    left, right = rows[0].reshape(m, k, n), rows[1].reshape(m, k, p)
    with _POOL:
        blocks = _blocks(m, n * p)
        if products is None:
            Wb, Wa = _products(U, left, right, blocks)
        else:
            Wb, Wa = (_rows(x).reshape(m, k, -1) for x in products)
        w, v = _factors(U, left, right, Wb, Wa, variant, blocks)
        residual = _update(U, w, v, columns, blocks)
    if residual is None:
        return None
    return torch.from_numpy(residual).mT.reshape(*W.shape[:-2], p, len(columns))


@cache
def _compiled() -> tuple[Any, Any]:
    from stiefel.unitary import cpu_core, cpu_sweeps

    return cpu_core, cpu_sweeps


def _blocks(m: int, size: int) -> int:
    """Set the number of threads and return into how many row blocks one matrix is cut."""
    import numba

    threads = max(1, _limit(torch.get_num_threads()))
    if m * size < 16384:
        threads = 1
    numba.set_num_threads(threads)
    return 1 if m >= 4 * threads else threads


def _limit(threads: int) -> int:
    from numba import config

    return min(threads, int(vars(config)["NUMBA_NUM_THREADS"]))


def _rows(x: Tensor) -> Array:
    return x.detach().mT.resolve_conj().contiguous().numpy()


def _products(U: Array, left: Array, right: Array, blocks: int) -> tuple[Array, Array]:
    real_left, real_right = left, right
    if np.iscomplexobj(U):
        real_left, real_right = _parts(left), _against(right)
    m, kk, n = real_left.shape
    dots = np.empty((m, kk, n), real_left.dtype)
    acc = np.empty((m, blocks, kk, real_right.shape[-1]), real_left.dtype)
    _compiled()[1].products(_real(U), real_left, real_right, dots, acc)
    total = _summed(acc)
    if np.iscomplexobj(U):
        return dots[:, 0::2] + 1j * dots[:, 1::2], _folded(total)
    return dots, total


def _factors(
    U: Array, left: Array, right: Array, Wb: Array, Wa: Array, variant: Variant, blocks: int
) -> tuple[Array, Array]:
    """Return w (m, 2k, n) and v (m, 2k, p): the update is ``U + w^T v``."""
    _, n, p = U.shape
    M, bB = _middle(left, right, Wa, variant)
    sources = [Wb, left]
    if variant == "direct":
        if n != p:
            sources[1] = _products(U, left, Wa, blocks)[0]
        # ([Wb, WWa] + a bB) M + [a, 0] as one product.
        below = bB @ M
        below += np.eye(*below.shape[-2:])
        M, sources = np.concatenate((M, below), axis=1), [*sources, left]
    weights = np.ascontiguousarray(M.transpose(0, 2, 1)).astype(U.dtype)
    w = torch.matmul(torch.from_numpy(weights), torch.from_numpy(np.concatenate(sources, axis=1)))
    v = np.concatenate((right, Wa), axis=1)
    return w.numpy(), np.conj(v) if np.iscomplexobj(v) else v


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


def _update(U: Array, w: Array, v: Array, columns: range, blocks: int) -> Array | None:
    r, start = len(columns), columns.start
    followed = _followed(U, w, v, columns)
    real_w, real_v, width = w, v, 1
    if np.iscomplexobj(U):
        real_w, real_v, width = _parts(w), _along(v), 2
        followed = _parts(followed)
    real_U = _real(U)
    acc = np.empty((U.shape[0], blocks, width * r, real_U.shape[-1]), real_U.dtype)
    _, sweeps = _compiled()
    sweeps.update(real_U, real_w, real_v, followed, acc)
    if not r:
        return None
    residual = _summed(acc)
    if np.iscomplexobj(U):
        residual = _folded(residual)
    for j in range(r):
        residual[:, j, start + j] -= 1
    against = _against(residual) if np.iscomplexobj(U) else residual
    sweeps.correct(real_U, against, width * start, blocks)
    return residual


def _followed(U: Array, w: Array, v: Array, columns: range) -> Array:
    """Return the columns as they will be after the update, (m, r, n)."""
    inside = slice(columns.start, columns.stop)
    moved = U[:, :, inside] + np.matmul(w.transpose(0, 2, 1), v[:, :, inside])
    return np.ascontiguousarray(moved.transpose(0, 2, 1))


def _summed(acc: Array) -> Array:
    total = acc[:, 0]
    for block in range(1, acc.shape[1]):
        total = total + acc[:, block]
    return np.ascontiguousarray(total)


def _real(U: Array) -> Array:
    return U.view(U.real.dtype) if np.iscomplexobj(U) else U


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
