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


def factor_rank(file: TensorFile, entry: TensorEntry) -> float:
    """The rank of the stored numbers, taken as exact; NaN where one is not finite.

    Columns are scaled to size 1 first: that leaves the rank as it is, and the columns of a
    factor U sqrt(S) or U S, which fade with the singular values, are told apart to the last.
    """
    columns = _columns(file, entry)
    if not np.isfinite(columns).all():
        return math.nan
    if entry.dtype == "F64":
        size = np.abs(columns).max(axis=0)
        columns = columns / np.where(size > 0, size, 1)
    else:
        size = np.sqrt(np.diagonal(columns).real)
        size = np.where(size > 0, size, 1)
        columns = columns / size / size[:, None]
    sigma = _singular_values(entry, columns)
    return int(np.count_nonzero(sigma > _measuring_error(entry) * frobenius(sigma)))


def product_rank(
    file: TensorFile, entry: TensorEntry, gram_matrix: Array | None = None
) -> float | None:
    """The least rank that a matrix can have had before it was rounded to its dtype.

    Rounding gives a product of low rank all of its singular values, but none of them more than
    ``rounding`` allows (Weyl), and none counts that is not larger. The bound reaches the largest
    singular value at a side of 2^16 for BF16 and 2^22 for F16, far beyond what is converted.

    Returns:
        None where every number may be rounding alone, as among the smallest numbers of F16;
        NaN where one is not finite.
    """
    columns = _columns(file, entry, gram_matrix)
    if not np.isfinite(columns).all():
        return math.nan
    sigma = _singular_values(entry, columns)
    largest = float(sigma.max())
    if largest == 0.0:
        return 0
    norm = frobenius(sigma / largest) * largest  # whose squares might overflow
    noise = rounding(entry, norm) + _measuring_error(entry) * norm
    return int(np.count_nonzero(sigma > noise)) or None


def _columns(file: TensorFile, entry: TensorEntry, gram_matrix: Array | None = None) -> Array:
    """A square matrix that tells the singular values: R of a QR for float64, else X^H X.

    The Gram matrix squares the condition number, which float64 affords for dtypes of 32
    bits and fewer; a float64 tensor goes through a QR of its blocks instead.
    """
    if entry.dtype == "F64":
        return _triangle(file, entry)
    return gram(file, entry) if gram_matrix is None else gram_matrix


def _singular_values(entry: TensorEntry, columns: Array) -> Array:
    """The singular values of the matrix that ``_columns`` stands for."""
    if entry.dtype == "F64":
        return np.asarray(np.linalg.svd(columns, compute_uv=False))
    return np.sqrt(np.clip(np.linalg.eigvalsh(columns), 0.0, None))


def _measuring_error(entry: TensorEntry) -> float:
    """How far the arithmetic here moves a singular value, relative to the Frobenius norm.

    A sum of k products in float64 is off by k eps at most, in the Gram matrix of the squares.
    """
    error = max(entry.matrix_shape) * EPS["F64"]
    return error if entry.dtype == "F64" else math.sqrt(error)


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
