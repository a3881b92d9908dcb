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

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import polar_factor
from stiefel.linalg.truncated_svd import widened
from stiefel.projection.nearest import Scale

ROWS = 8192  # rows widened to float64 at a time
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

    Cost: one m x m Gram matrix of the inputs in float64 and one polar factor (one per iteration
    if wide); with ``outputs`` also two to four products of the inputs by m x n, for the distances.
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
    if outputs is None:
        return _solved(w, _of_weights(w, _summed(rows, rows), scale), tolerance, limit)
    wanted = outputs.detach().reshape(-1, outputs.shape[-1]).to(wide)
    if wanted.shape != (len(rows), w.shape[0]):
        raise InvalidInputError(
            f"outputs {tuple(outputs.shape)} do not fit inputs {tuple(inputs.shape)}"
        )
    return _solved(w, _of_outputs(rows, wanted, scale), tolerance, limit)


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
    w, moment = w.detach().to(wide), widened(moment.detach().to(wide))
    mean = float(moment.diagonal().real.mean())
    if not (mean > 0 and bool(torch.isfinite(moment).all())):
        raise InvalidInputError(
            "the moment of the inputs is zero or not finite",
            code="empty_calibration",
            fix="give batches that reach the layer",
        )
    return _solved(w, _of_weights(w, moment, scale, unseen=UNSEEN), tolerance, limit)


@dataclass(frozen=True)
class _Problem:
    """The quadratic in Q, over the mean moment of the inputs, with C their second moment."""

    moment: Tensor  # C
    aligned: Tensor  # W C, or the products of wanted outputs and inputs
    norm: float  # of the outputs, squared
    scale: Scale
    measured: Callable[[Tensor, float], float]  # the square of Q and s, from their difference

    def to(self, dtype: torch.dtype) -> _Problem:
        return replace(self, moment=self.moment.to(dtype), aligned=self.aligned.to(dtype))

    def gain(self, q: Tensor) -> float:
        q = q.to(self.moment.dtype)
        quadratic = _inner(q, q @ self.moment)
        fitted = self.scale == "mean" and quadratic > 0
        return _inner(q, self.aligned) / quadratic if fitted else 1.0

    def square(self, q: Tensor) -> float:
        """What an iteration compares: three sums, of which half the digits cancel near zero."""
        s = self.gain(q)
        cross, quadratic = _inner(q, self.aligned), _inner(q, q @ self.moment)
        return max(0.0, self.norm - 2 * s * cross + s * s * quadratic)

    def distance(self, q: Tensor) -> float:
        """What is reported: relative, in float64, with all its digits."""
        tiny = torch.finfo(self.moment.dtype).tiny
        return math.sqrt(max(0.0, self.measured(q, self.gain(q))) / max(self.norm, tiny))


def _of_weights(w: Tensor, moment: Tensor, scale: Scale, *, unseen: float = 0.0) -> _Problem:
    """Outputs as ``w`` gives them; ``unseen`` decides between factors, but is no distance."""
    w, moment = widened(w), moment / _mean(moment)

    def measured(q: Tensor, s: float) -> float:
        change = w - s * widened(q)
        return _inner(change, change @ moment)

    eye = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    shifted = moment + unseen * eye
    return _Problem(shifted, w @ shifted, _inner(w, w @ moment), scale, measured)


def _of_outputs(rows: Tensor, wanted: Tensor, scale: Scale) -> _Problem:
    """Outputs of their own: their distance is that of the rows, which no moment tells as well."""
    peak, moment = _peak(rows), _summed(rows, rows)
    mean = _mean(moment)

    def measured(q: Tensor, s: float) -> float:
        total = 0.0
        for x, y in zip(torch.split(rows, ROWS), torch.split(wanted, ROWS), strict=True):
            change = widened(y) / peak - s * (widened(x) / peak) @ widened(q).mT
            total += _inner(change, change)
        return total / mean

    aligned = _summed(rows, wanted) / mean
    norm = sum(_inner(y, y) for y in (widened(y) / peak for y in torch.split(wanted, ROWS))) / mean
    return _Problem(moment / mean, aligned, norm, scale, measured)


def _summed(rows: Tensor, other: Tensor) -> Tensor:
    """``other^T conj(rows)`` in float64, both over the largest input: squares stay in range."""
    peak = _peak(rows)
    total = widened(rows.new_zeros(other.shape[1], rows.shape[1]))
    for x, y in zip(torch.split(rows, ROWS), torch.split(other, ROWS), strict=True):
        total += (widened(y) / peak).mT @ (widened(x) / peak).conj()
    return total


def _peak(rows: Tensor) -> float:
    return (float(rows.abs().amax()) if rows.numel() else 0.0) or 1.0


def _mean(moment: Tensor) -> float:
    return (float(moment.diagonal().real.mean()) if moment.numel() else 0.0) or 1.0


def _solved(w: Tensor, problem: _Problem, tolerance: float, limit: int) -> Procrustes:
    plain, working = _polar(w), problem.to(w.dtype)
    exact = w.shape[0] >= w.shape[1]
    if exact:
        factor, iterations = _polar(working.aligned), 0
    else:
        best = min((plain, _polar(working.aligned)), key=problem.distance)
        factor, iterations = _majorised(working, best, tolerance, limit)
    return Procrustes(
        factor=factor,
        gain=problem.gain(factor),
        distance=problem.distance(factor),
        plain_distance=problem.distance(plain),
        exact=exact,
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
