"""``project.unitary``: the nearest matrix with orthonormal columns, tensor by tensor.

The factor comes from a float64 SVD, because the certificate needs the singular values anyway
and float32 would miss the nearest matrix visibly where the input is ill-conditioned. All
figures are measured in float64 on the values as they are stored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg.truncated_svd import DOUBLE, thin_svd, widened
from stiefel.methods.conversion import Converted, NewTensor, Task, convert_checkpoint
from stiefel.methods.moments import Moments, opened_moments
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.projection.procrustes import Procrustes, procrustes_for_moment
from stiefel.projection.uwpa import uwpa
from stiefel.specs.project_unitary import ProjectUnitarySpec
from stiefel.weights.dtypes import TORCH

DEFECT_BLOCK = 256  # columns; smaller saves little, larger saves less of the symmetric half


@dataclass(frozen=True)
class Nearest:
    """The closed-form optimum for one Stiefel-shaped matrix."""

    factor: Tensor  # (n, p) float64 or complex128, orthonormal columns
    sigma: Tensor  # (p,) singular values of the input, descending
    signs: float  # +1, or -1 where the least direction was turned for the determinant


def run(spec: ProjectUnitarySpec, run: Run) -> Outcome:
    """Project the checkpoint in ``run.input``; see ``convert_checkpoint`` for the errors."""
    with opened_moments(spec, run) as moments:
        return convert_checkpoint(spec, run, lambda shop: lambda task: project(spec, task, moments))


def project(spec: ProjectUnitarySpec, task: Task, moments: Moments | None = None) -> Converted:
    """Project one tensor and measure what came out."""
    item = task.item
    wide = item.rows < item.columns
    matrix = task.x.reshape(item.rows, item.columns)
    moment = moments.of(item.tensor.name, matrix) if moments is not None else None
    # Wide matrices are transposed once, here, and back once, at the end.
    x = widened(matrix.mH if wide else matrix)
    nearest = closed_form(spec, x, item.tensor.dtype, item.tensor.name)
    gain = float(nearest.sigma.mean()) if spec.scale == "mean" else 1.0
    factor, effort = nearest.factor, dict[str, float]()
    if moment is not None:
        turned = moment.stored_transposed
        weight = widened(matrix.mT if turned else matrix)
        aware = procrustes_for_moment(weight, moment.matrix, scale=spec.scale)
        own = aware.factor.mT if turned else aware.factor
        factor, gain = own.mH if wide else own, aware.gain
    elif spec.algorithm == "uwpa":
        factor, effort = _fitted(spec, x, task)
    values = factor if gain == 1.0 else gain * factor
    dtype = spec.stored_dtype(item.tensor.dtype)
    stored = (values.mH if wide else values).to(TORCH[dtype]).reshape(item.tensor.shape)
    kept = widened(stored.reshape(item.rows, item.columns))
    claims = _claims(x, kept.mH if wide else kept, nearest, gain)
    if moment is not None:
        claims |= _output_claims(weight, kept.mT if turned else kept, moment.matrix, aware)
    before = {
        "largest_singular_value": float(nearest.sigma[0]),
        "least_singular_value": float(nearest.sigma[-1]),
        "orthogonality_defect": float(torch.linalg.vector_norm(nearest.sigma.square() - 1)),
    }
    new = NewTensor(item.tensor.name, dtype, stored, "projected", claims)
    return Converted((new,), before, {**claims, **effort}, nearest.sigma)


def closed_form(spec: ProjectUnitarySpec, x: Tensor, dtype: str, name: str) -> Nearest:
    """Return the polar factor of ``x`` ``(n, p)``, turned to determinant +1 where that is asked.

    Raises:
        InvalidInputError: the matrix is zero or numerically rank-deficient (``zero_matrix``,
            ``rank_deficient``) and the spec does not say to complete it.
    """
    # The Gram matrix squares the condition: below what float32 can store, but not float64.
    svd = thin_svd(x, engine="full" if TORCH[dtype] in DOUBLE else "auto")
    largest, least = float(svd.sigma[0]), float(svd.sigma[-1])
    if spec.singular == "error":
        _check_unique(largest, least, dtype, name)
    if least <= largest * torch.finfo(torch.float64).eps * max(x.shape):
        svd = thin_svd(x, engine="full")  # its null vectors are orthonormal whatever the rank
    factor = svd.U @ svd.Vh
    signs = 1.0
    square_real = x.shape[0] == x.shape[1] and not x.is_complex()
    # slogdet: the product of n pivots underflows where n is large.
    if spec.determinant == 1 and square_real and float(torch.linalg.slogdet(factor)[0]) < 0:
        factor = factor - 2 * torch.outer(svd.U[:, -1], svd.Vh[-1])
        signs = -1.0
    return Nearest(factor, svd.sigma, signs)


def _fitted(spec: ProjectUnitarySpec, x: Tensor, task: Task) -> tuple[Tensor, dict[str, float]]:
    """The factor by gradient descent through the exponential, in the precision of the input.

    Beside it the fitted loss ||W / s - Q||^2, the least that any Q has, and what of the difference
    is due to the determinant, +1 for every exponential of a real skew matrix.
    """

    def tell(iteration: int, loss: float) -> None:
        task.curve(iteration, {"fit_loss": loss})
        task.breathe()

    fit = uwpa(
        x.to(torch.promote_types(task.x.dtype, torch.float32)),
        limit=spec.iterations,
        on_iteration=tell,
    )
    return widened(fit.factor), {
        "iterations": fit.iterations,
        "exponentials": fit.exponentials,
        "fitted_loss": fit.loss,
        "closed_form_loss": fit.optimum,
        "determinant_gap": fit.determinant_gap,
    }


def _output_claims(w: Tensor, kept: Tensor, moment: Tensor, aware: Procrustes) -> dict[str, float]:
    """How far outputs on the data move, over their norm: as stored, at best, by the weights alone.

    A wide matrix has no closed form: what the iteration reached is then no bound, and not claimed.
    """
    change = w - kept
    moved, whole = (float(((y @ moment) * y).sum().clamp_min(0)) for y in (change, w))
    claims = {"output_error": math.sqrt(moved / whole) if whole else 0.0}
    if aware.exact:
        claims["optimal_output_error"] = aware.distance
    return claims | {"polar_output_error": aware.plain_distance}


def _check_unique(largest: float, least: float, dtype: str, name: str) -> None:
    """Refuse a matrix that a rounding of its entries could make singular."""
    eps = torch.finfo(torch.float64 if dtype == "F64" else torch.float32).eps
    if largest == 0:
        raise InvalidInputError(
            f"tensor {name!r} is zero: every unitary matrix is equally near",
            code="zero_matrix",
            fix='Exclude the tensor, or set "singular": "complete" to get one of the nearest.',
            tensor=name,
        )
    if least <= eps * largest:
        raise InvalidInputError(
            f"tensor {name!r} is rank-deficient: its singular values reach from {largest:.3g} "
            f"down to {least:.3g}, so its nearest unitary matrix is not unique",
            code="rank_deficient",
            fix='Exclude the tensor, or set "singular": "complete" to get one of the nearest.',
            tensor=name,
        )


def _claims(x: Tensor, kept: Tensor, nearest: Nearest, gain: float) -> dict[str, float]:
    """Figures of the stored values ``kept`` against the input ``x`` and the optimum."""
    sigma = nearest.sigma.clone()
    sigma[-1] *= nearest.signs
    claims = {
        "orthogonality_defect": defect(kept, gain),
        "distance_to_input": float(torch.linalg.vector_norm(kept - x)),
        "distance_to_optimum": float(torch.linalg.vector_norm(kept - gain * nearest.factor)),
        # ||X - s Q||^2 = sum (sigma_i - s)^2: what no matrix of this kind can undercut.
        "optimum_distance_to_input": float(torch.linalg.vector_norm(sigma - gain)),
    }
    return claims if gain == 1.0 else {**claims, "gain": gain}


def defect(x: Tensor, gain: float = 1.0) -> float:
    """``||X^H X / gain^2 - I||_F`` of ``x`` ``(n, p)``, the upper triangle of blocks alone."""
    total = 0.0
    for begin in range(0, x.shape[1], DEFECT_BLOCK):
        end = begin + DEFECT_BLOCK
        left = x[:, begin:end].mH / gain**2
        square = left @ x[:, begin:end]
        square.diagonal().sub_(1)
        total += float(torch.linalg.vector_norm(square)) ** 2
        if end < x.shape[1]:
            total += 2 * float(torch.linalg.vector_norm(left @ x[:, end:])) ** 2
    return math.sqrt(total)


METHOD = Method("project.unitary", ProjectUnitarySpec, run)
