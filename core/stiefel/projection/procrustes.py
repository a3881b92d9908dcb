"""Data-aware projection: nearest in the outputs on given inputs, min ||X W^T - s X Q^T||_F.

With C = X^T conj(X) the squared distance is tr((W - s Q) C (W - s Q)^H). Where Q has orthonormal
columns (square and tall weights) tr(Q C Q^H) = tr C is constant, so the minimiser is the polar
factor of W C, in closed form. Where Q has orthonormal rows (wide weights) the quadratic part
stays: the problem has no closed form and may have local minima. There each iteration minimises a
quadratic that touches the distance from above (C is replaced by its largest eigenvalue), again by
a polar factor, so that the distance never rises.

Source: Schoenemann, Psychometrika 31, 1966; Nie, Zhang and Li, Science China 60, 2017 (the
iteration for wide matrices).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import polar_factor
from stiefel.projection.nearest import Scale

UNSEEN = 1e-9  # weight of directions without data, over the mean moment


@dataclass(frozen=True)
class Procrustes:
    """The factor that is nearest in the outputs."""

    factor: Tensor  # (n, m) like the weights
    gain: float  # s
    distance: float  # ||X W^T - s X Q^T||_F / ||X W^T||_F
    plain_distance: float  # the same for the nearest matrix that ignores the inputs
    exact: bool  # True: the global minimum in closed form; False: iterated, perhaps local
    iterations: int


def procrustes(
    w: Tensor,
    inputs: Tensor,
    *,
    outputs: Tensor | None = None,
    scale: Scale = "none",
    tolerance: float = 1e-7,
    limit: int = 500,
) -> Procrustes:
    """Return the Q with orthonormal columns (rows where wide) whose outputs are nearest to W's.

    Args:
        w: ``(n, m)``, outputs are ``inputs @ w.mT``, as of ``nn.Linear`` without bias.
        inputs: ``(..., m)``, any number of rows; a few times m of them make the fit meaningful.
        outputs: ``(..., n)``, the wanted outputs where they are not those of ``w`` on ``inputs``,
            for example because the layers below have been projected too. ``w`` then only starts
            the iteration for wide weights.
        scale: ``mean`` also fits s by least squares, ``none`` keeps s = 1.
        tolerance: the iteration for wide weights ends at this relative decrease of the square.
        limit: most iterations for wide weights.

    Raises:
        InvalidInputError: shapes that do not fit, or non-finite entries.

    Cost: one m x m Gram matrix of the inputs and one polar factor (one per iteration if wide).
    """
    rows = inputs.reshape(-1, inputs.shape[-1]) if inputs.ndim else inputs
    if w.ndim != 2 or rows.ndim != 2 or rows.shape[-1] != w.shape[1]:
        raise InvalidInputError(
            f"inputs {tuple(inputs.shape)} do not fit weights {tuple(w.shape)}",
            fix="the last axis of the inputs must be the number of columns of the weights",
        )
    wide = torch.promote_types(torch.promote_types(w.dtype, rows.dtype), torch.float32)
    w, rows = w.detach().to(wide), rows.detach().to(wide)
    if not bool(torch.isfinite(rows).all()):
        raise InvalidInputError("the inputs hold non-finite entries", code="non_finite_inputs")
    moment = rows.mT @ rows.conj() / max(1, len(rows))
    if outputs is None:
        problem = _Problem(moment, w @ moment, _inner(w, w @ moment), scale)
    else:
        wanted = outputs.detach().reshape(-1, outputs.shape[-1]).to(wide)
        if wanted.shape != (len(rows), w.shape[0]):
            raise InvalidInputError(
                f"outputs {tuple(outputs.shape)} do not fit inputs {tuple(inputs.shape)}"
            )
        count = max(1, len(rows))
        problem = _Problem(
            moment, wanted.mT @ rows.conj() / count, _inner(wanted, wanted) / count, scale
        )
    return _solved(w, problem, tolerance, limit)


def procrustes_for_moment(
    w: Tensor,
    moment: Tensor,
    *,
    scale: Scale = "none",
    tolerance: float = 1e-7,
    limit: int = 500,
) -> Procrustes:
    """As :func:`procrustes`, from the second moment of the inputs alone.

    Args:
        w: ``(n, m)``.
        moment: ``(m, m)`` C = sum x x^H over inputs x, at any scale.
        scale: see :func:`procrustes`, like tolerance and limit.
        tolerance: see scale.
        limit: see scale.

    Raises:
        InvalidInputError: shapes that do not fit, a zero moment, or non-finite entries.

    Directions that the inputs never had follow the weights: a thousand-millionth of the mean
    moment is added to the diagonal, without which the nearest factor would not be unique.
    """
    if w.ndim != 2 or tuple(moment.shape) != (w.shape[1], w.shape[1]):
        raise InvalidInputError(
            f"a moment {tuple(moment.shape)} does not fit weights {tuple(w.shape)}",
            code="calibration_width",
            fix="the moment is square, one row per column of the weights",
        )
    wide = torch.promote_types(torch.promote_types(w.dtype, moment.dtype), torch.float32)
    w, moment = w.detach().to(wide), moment.detach().to(wide)
    mean = float(moment.diagonal().real.mean())
    if not (mean > 0 and bool(torch.isfinite(moment).all())):
        raise InvalidInputError(
            "the moment of the inputs is zero or not finite",
            code="empty_calibration",
            fix="give batches that reach the layer",
        )
    moment = moment / mean
    moment = moment + UNSEEN * torch.eye(len(moment), dtype=wide, device=moment.device)
    problem = _Problem(moment, w @ moment, _inner(w, w @ moment), scale)
    return _solved(w, problem, tolerance, limit)


class _Problem:
    """The quadratic in Q, with C the second moment of the inputs."""

    def __init__(self, moment: Tensor, aligned: Tensor, norm: float, scale: Scale) -> None:
        self.moment = moment  # C
        self.aligned = aligned  # W C, or the products of wanted outputs and inputs
        self.norm = norm  # of the outputs, squared
        self.scale = scale

    def gain(self, q: Tensor) -> float:
        quadratic = _inner(q, q @ self.moment)
        fitted = self.scale == "mean" and quadratic > 0
        return _inner(q, self.aligned) / quadratic if fitted else 1.0

    def square(self, q: Tensor) -> float:
        s = self.gain(q)
        cross, quadratic = _inner(q, self.aligned), _inner(q, q @ self.moment)
        return max(0.0, self.norm - 2 * s * cross + s * s * quadratic)


def _solved(w: Tensor, problem: _Problem, tolerance: float, limit: int) -> Procrustes:
    plain = _polar(w)
    if w.shape[0] >= w.shape[1]:
        factor, iterations = _polar(problem.aligned), 0
    else:
        starts = (plain, _polar(problem.aligned))
        best = min(starts, key=problem.square)
        factor, iterations = _majorised(problem, best, tolerance, limit)
    whole = max(problem.norm, torch.finfo(w.dtype).tiny)
    return Procrustes(
        factor=factor,
        gain=problem.gain(factor),
        distance=(problem.square(factor) / whole) ** 0.5,
        plain_distance=(problem.square(plain) / whole) ** 0.5,
        exact=w.shape[0] >= w.shape[1],
        iterations=iterations,
    )


def _majorised(problem: _Problem, q: Tensor, tolerance: float, limit: int) -> tuple[Tensor, int]:
    largest = float(torch.linalg.eigvalsh(problem.moment)[-1])
    before = problem.square(q)
    for iteration in range(1, limit + 1):
        # The minimiser of the touching quadratic: s^2 (largest - C) replaces the curvature.
        s = problem.gain(q)
        q = _polar(problem.aligned + s * (largest * q - q @ problem.moment))
        square = problem.square(q)
        if before - square <= tolerance * problem.norm:
            return q, iteration
        before = square
    return q, limit


def _inner(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vecdot(a.flatten(), b.flatten()).real)


def _polar(a: Tensor) -> Tensor:
    if a.shape[0] < a.shape[1]:
        return polar_factor(a.mH).factor.mH
    return polar_factor(a).factor
