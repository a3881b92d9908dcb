"""What can be measured on the matrices of a file, in float64, with bounded blocks.

Sources: Golub and Van Loan, Matrix Computations, 4th ed., sections 5.2 and 5.5; Higham,
Functions of Matrices, ch. 8 (the polar factor is the nearest matrix with orthonormal columns).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from stiefel_client.tensorfile import EPS, Array, TensorEntry, TensorFile

BLOCK_NUMBERS = 4 * 2**20  # 32 MiB of float64 per block
# The spacing of each stored dtype around zero, where it no longer shrinks with the number.
SPACING_AT_ZERO = {
    "F16": 2.0**-24,
    "BF16": 2.0**-133,
    "F32": 2.0**-149,
    "C64": 2.0**-149,
    "F64": 2.0**-1074,
}


def tall_blocks(
    file: TensorFile, entry: TensorEntry, *, numbers: int = BLOCK_NUMBERS
) -> Iterator[Array]:
    """Row blocks ``(b, p)`` of at most ``numbers``, of the matrix made tall by transposition."""
    height, width = entry.matrix_shape
    step = max(1, numbers // max(1, min(height, width)))
    if height >= width:
        for first in range(0, height, step):
            yield file.rows(entry, first, min(first + step, height))
    else:
        for first in range(0, width, step):
            yield file.columns(entry, first, min(first + step, width)).T


def gram(file: TensorFile, entry: TensorEntry) -> Array:
    """X^H X, ``(p, p)`` with p the smaller side, accumulated in float64 block by block."""
    p = min(entry.matrix_shape)
    total = np.zeros((p, p), dtype=np.complex128 if entry.dtype == "C64" else np.float64)
    for block in tall_blocks(file, entry):
        # For a real block numpy recognises b.T @ b and computes one triangle only.
        total += block.conj().T @ block if np.iscomplexobj(block) else block.T @ block
    return total


def frobenius(matrix: Array) -> float:
    """Frobenius norm; summed in pairs, and without waking BLAS threads for so little."""
    return float(np.sqrt(np.sum(np.square(np.abs(matrix)))))


def rounding(entry: TensorEntry, norm: float) -> float:
    """How far, in Frobenius norm, a matrix may lie from what was rounded to its dtype.

    ``norm`` is the Frobenius norm of the matrix. Each of its numbers was moved by at most half
    the spacing there, eps / 2 of itself or, around zero, half the spacing at zero.

    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., Theorem 2.3.
    """
    numbers = entry.elements * (2 if entry.dtype == "C64" else 1)
    smallest = SPACING_AT_ZERO[entry.dtype] * math.sqrt(numbers)
    return (EPS[entry.dtype] * norm + smallest) / 2


def orthogonality_defect(gram_matrix: Array, gain: float = 1.0) -> float:
    """||X^H X / gain^2 - I||_F from the Gram matrix; ``gain`` is a factor kept on purpose."""
    return frobenius(gram_matrix / gain**2 - np.eye(len(gram_matrix)))


def numerical_rank(file: TensorFile, entry: TensorEntry, gram_matrix: Array | None = None) -> int:
    """Singular values above ``max(n, m) * eps * sigma_max``, eps of the stored dtype.

    The Gram matrix squares the condition number, which float64 affords for dtypes of 32
    bits and fewer; a float64 tensor goes through a QR of its blocks instead.
    """
    if entry.elements == 0:
        return 0
    if entry.dtype == "F64":
        sigma = np.linalg.svd(_triangle(file, entry), compute_uv=False)
    else:
        squares = np.linalg.eigvalsh(gram(file, entry) if gram_matrix is None else gram_matrix)
        sigma = np.sqrt(np.clip(squares, 0.0, None))
    bound = max(entry.matrix_shape) * EPS[entry.dtype] * float(sigma.max())
    return int(np.count_nonzero(sigma > bound))


def _triangle(file: TensorFile, entry: TensorEntry) -> Array:
    """The R factor of the whole matrix, from the QR of one block after the other."""
    triangle: Array = np.zeros((0, min(entry.matrix_shape)))
    for block in tall_blocks(file, entry):
        triangle = np.asarray(np.linalg.qr(np.vstack([triangle, block]), mode="r"))
    return triangle


class Optimum(NamedTuple):
    """The closed-form optimum of a projection, from one float64 SVD of the source."""

    nearest: Array  # (n, m), the polar factor times ``gain``
    distance: float  # ||nearest - source||_F
    unique: bool  # False where the source is rank-deficient: many matrices are equally near


def nearest_orthonormal(source: Array, gain: float = 1.0, *, rotation: bool = False) -> Optimum:
    """The nearest matrix with orthonormal columns (rows, if wide), times ``gain``.

    With ``rotation`` a square real one has determinant +1 (Kabsch): where the nearest has
    -1, the direction of the smallest singular value is turned round.
    """
    left, sigma, right = np.linalg.svd(source, full_matrices=False)
    square_real = source.shape[0] == source.shape[1] and not np.iscomplexobj(source)
    if rotation and square_real and np.linalg.slogdet(left @ right)[0] < 0:
        left[:, -1] *= -1
    nearest = gain * (left @ right)
    # Near rank deficiency the factor moves by eps / sigma_min: no figure to compare.
    unique = bool(sigma[-1] > 1e-8 * sigma[0])
    return Optimum(nearest, frobenius(nearest - source), unique)


class Tail(NamedTuple):
    """What the best rank-r approximation keeps and loses (Eckart and Young)."""

    retained_energy: float  # sum of the r largest sigma^2 over the sum of all
    optimal_error: float  # norm of the other sigma over the norm of all


def best_rank(source: Array, rank: int) -> Tail:
    """Energy kept and relative error of the best approximation of ``source`` at ``rank``."""
    squares = np.linalg.svd(source, compute_uv=False) ** 2
    whole = float(squares.sum())
    if whole == 0.0:
        return Tail(1.0, 0.0)
    lost = float(squares[rank:].sum())
    return Tail(1.0 - lost / whole, float(np.sqrt(lost / whole)))
