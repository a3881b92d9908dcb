"""The principal logarithm of an orthogonal or unitary matrix: a skew S with exp(S) = Q.

It seeds Lie parameters with a projected matrix. Square roots of a unitary matrix are polar
factors, Q^(1/2) = polar(I + Q), so no Schur form is needed and a real matrix keeps a real
logarithm; the eigenvalues near -1, where this loses its footing, are split off first.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import hermitian, orthogonality_defect, polar_factor, skew
from stiefel.projection.nearest import is_reflection

ROOTS = 4  # halvings of the angle before the series
TERMS = 10  # of 2 artanh, enough for angles up to pi / 16 in float64
NULL = 1e-12  # angle from pi, per dimension, under which it counts as pi


def unitary_log(q: Tensor) -> Tensor:
    """Return skew-Hermitian S with ``exp(S) = q`` and angles in [-pi, pi].

    Args:
        q: ``(n, n)`` orthogonal or unitary; computed in float64 and returned in the dtype of q.
            An eigenvalue -1 has two logarithms: in a real matrix such eigenvalues come in pairs
            and each pair is rotated by pi in a plane of its eigenspace; in a complex matrix the
            angle is pi.

    Raises:
        InvalidInputError: not square, not unitary to about 1e-3, or real with determinant -1,
            which has no real logarithm.

    Cost: one Hermitian eigendecomposition and about eight polar factors.
    """
    if q.ndim != 2 or q.shape[0] != q.shape[1]:
        raise InvalidInputError(f"unitary_log needs a square matrix, got {tuple(q.shape)}")
    wide = q.detach().to(torch.complex128 if q.is_complex() else torch.float64)
    if not float(orthogonality_defect(wide)) <= 1e-3 * max(1, q.shape[0]):
        raise InvalidInputError("unitary_log needs a unitary matrix", fix="project it first")
    if not q.numel():
        return q.clone()
    wide = polar_factor(wide).factor
    if not q.is_complex() and is_reflection(wide):
        raise InvalidInputError(
            "an orthogonal matrix of determinant -1 has no real logarithm",
            code="determinant_minus_one",
            fix="project with determinant 1, or pass a complex matrix",
        )
    return _log(wide).to(q.dtype)


def _log(q: Tensor) -> Tensor:
    cosines, vectors = torch.linalg.eigh(hermitian(q))
    far = int((cosines < _cut(cosines)).sum())
    near_basis, far_basis = vectors[:, far:], vectors[:, :far]
    algebra = near_basis @ _log_near(near_basis.mH @ q @ near_basis) @ near_basis.mH
    if far:
        turned = _log_near(-(far_basis.mH @ q @ far_basis))
        algebra = algebra + far_basis @ _half_turned(turned) @ far_basis.mH
    return skew(algebra)


def _cut(cosines: Tensor) -> float:
    """A threshold between -0.9 and -0.3 in the widest gap, so that no eigenspace is torn."""
    inside = cosines[(cosines > -0.9) & (cosines < -0.3)]
    ends = torch.tensor([-0.9, -0.3], dtype=cosines.dtype, device=cosines.device)
    points = torch.cat([ends[:1], inside, ends[1:]])
    widest = int((points[1:] - points[:-1]).argmax())
    return float(points[widest] + points[widest + 1]) / 2


def _log_near(q: Tensor) -> Tensor:
    """The logarithm where every angle is under 0.86 pi, by square roots and a series."""
    if not q.numel():
        return q
    eye = torch.eye(q.shape[-1], dtype=q.dtype, device=q.device)
    q = polar_factor(q).factor
    for _ in range(ROOTS):
        q = polar_factor(q + eye).factor
    # log Q = 2 artanh((Q - I)(Q + I)^-1), a series in odd powers of a skew matrix.
    a = skew(torch.linalg.solve(q + eye, q - eye))
    square = a @ a
    series: Tensor = eye / (2 * TERMS - 1)
    for k in range(TERMS - 1, 0, -1):
        series = eye / (2 * k - 1) + square @ series
    return skew(2 ** (ROOTS + 1) * a @ series)


def _half_turned(algebra: Tensor) -> Tensor:
    """The logarithm of -exp(T) for a small skew T: T + pi J with J^2 = -I that commutes with T."""
    if algebra.is_complex():
        angles, vectors = torch.linalg.eigh(-1j * algebra)
        half = torch.full_like(angles, math.pi)
        angles = angles + torch.where(angles <= 0, half, -half)
        turned: Tensor = vectors @ (1j * angles.unsqueeze(-1) * vectors.mH)
        return turned
    squares, vectors = torch.linalg.eigh(-(algebra @ algebra))
    plane = algebra.new_tensor([[0.0, -1.0], [1.0, 0.0]])
    null = int((squares.clamp_min(0).sqrt() <= _null(algebra)).sum())
    null += null % 2
    basis, rest = vectors[:, :null], vectors[:, null:]
    pairs = torch.eye(null // 2, dtype=algebra.dtype, device=algebra.device)
    turn = basis @ torch.kron(pairs, plane) @ basis.mT
    if rest.shape[1]:
        # The polar factor of a skew matrix is its direction of rotation; -J shortens the angle.
        direction = polar_factor(skew(rest.mT @ algebra @ rest)).factor
        turn = turn - rest @ polar_factor(skew(direction)).factor @ rest.mT
    return algebra + math.pi * skew(turn)


def _null(algebra: Tensor) -> float:
    # Squares of angles are known to eps, so angles only to its root where they are that small.
    return max(NULL * algebra.shape[-1], math.sqrt(torch.finfo(algebra.dtype).eps))
