"""UWPA: fit a unitary matrix to given weights by gradient descent through the exponential.

The method of "Unitary weights projection" (arXiv 2102.10052): Lie parameters theta, candidate
Q = exp(L(theta)), loss ||W / s - Q||_F^2, gradients by backpropagation, start at theta = 0.
The text leaves the optimiser open; here every step is a Barzilai-Borwein step, shortened until
the loss falls enough below the largest of the last ones (Grippo, Lampariello and Lucidi 1986).

The loss is an orthogonal Procrustes problem with a closed-form minimum, sum (sigma_i / s - 1)^2;
the result carries it beside the fitted loss. exp of a real skew matrix has determinant +1, so a
real square W of negative determinant can only be approached to that minimum + 4 sigma_min / s.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.projection.lie import frame_of_parameters
from stiefel.projection.nearest import Scale, is_reflection, oriented

OnIteration = Callable[[int, float], None]
SUFFICIENT = 1e-4  # fraction of the predicted decrease that a step must deliver
MEMORY = 8  # losses among which the largest is the reference for that


@dataclass(frozen=True)
class Uwpa:
    """The fitted frame and what it is worth."""

    factor: Tensor  # (n, m) like the weights: orthonormal columns, or rows where n < m
    parameters: Tensor  # (max, min) Lie parameters; of the transpose where n < m
    gain: float  # s, the weights are close to s * factor
    loss: float  # ||W / s - Q||_F^2, reached
    optimum: float  # the least loss over all frames, in closed form
    determinant_gap: float  # 4 sigma_min / s where only reflections reach the optimum, else 0
    defect: float
    iterations: int
    exponentials: int  # evaluations of loss and gradient


def uwpa(
    w: Tensor,
    *,
    scale: Scale = "mean",
    tolerance: float = 3e-5,
    window: int = 20,
    limit: int = 2000,
    on_iteration: OnIteration | None = None,
) -> Uwpa:
    """Fit ``s * Q`` to ``w`` and return Q with its Lie parameters.

    Args:
        w: ``(n, m)`` real or complex, square, tall or wide; half precision is fitted in float32.
            A convolution kernel comes flattened to ``(channels out, the rest)``.
        scale: ``mean`` divides by the mean singular value, ``none`` by nothing.
        tolerance: stop when the last iterations lowered the loss by less than this fraction.
        window: how many iterations those are.
        limit: most iterations.
        on_iteration: called with the iteration and its loss; may raise to stop the fit.

    Raises:
        InvalidInputError: not a matrix, empty, non-finite entries, or ``mean`` of a zero matrix.

    Cost: some hundred evaluations of one n x n exponential (about ten products) and its gradient.
    """
    tall, wide = oriented(w.detach())
    if not tall.numel() or not bool(torch.isfinite(tall).all()):
        raise InvalidInputError("weights are empty or not finite", code="non_finite_weights")
    gain, optimum, gap = _closed_form(tall, scale)
    theta, best, iterations, exponentials = _descend(
        tall / gain, tolerance, window, limit, on_iteration
    )
    with torch.no_grad():
        factor = frame_of_parameters(theta)
    return Uwpa(
        factor=factor.mH if wide else factor,
        parameters=theta,
        gain=gain,
        loss=best,
        optimum=optimum,
        determinant_gap=gap,
        defect=float(orthogonality_defect(factor)),
        iterations=iterations,
        exponentials=exponentials,
    )


def _closed_form(x: Tensor, scale: Scale) -> tuple[float, float, float]:
    """Return s, the least loss, and what the determinant adds to it."""
    left, sigma, right = torch.linalg.svd(x, full_matrices=False)
    sigma = sigma.double()
    gain = float(sigma.mean()) if scale == "mean" else 1.0
    if gain == 0.0:
        raise InvalidInputError(
            "a zero matrix has no mean singular value to keep",
            code="zero_matrix",
            fix='exclude the tensor or use scale "none"',
        )
    optimum = float((sigma / gain - 1).square().sum())
    square = x.shape[0] == x.shape[1] and not x.is_complex()
    reflection = square and is_reflection(left) != is_reflection(right)
    return gain, optimum, 4 * float(sigma[-1]) / gain if reflection else 0.0


def _descend(
    target: Tensor,
    tolerance: float,
    window: int,
    limit: int,
    on_iteration: OnIteration | None,
) -> tuple[Tensor, float, int, int]:
    theta = torch.zeros_like(target)
    loss, gradient = _evaluate(theta, target)
    recent = deque([loss], maxlen=MEMORY)
    best, best_theta, milestones = loss, theta, [loss]
    step, evaluations = 0.25, 1  # 1 / (largest curvature at the optimum of a unitary target)
    for iteration in range(1, limit + 1):
        slope = float(torch.linalg.vector_norm(gradient)) ** 2
        while True:
            candidate = theta - step * gradient
            new_loss, new_gradient = _evaluate(candidate, target)
            evaluations += 1
            if new_loss <= max(recent) - SUFFICIENT * step * slope or step * slope < 1e-30:
                break
            step /= 4
        step = _barzilai_borwein(candidate - theta, new_gradient - gradient, step)
        theta, loss, gradient = candidate, new_loss, new_gradient
        recent.append(loss)
        if loss < best:
            best, best_theta = loss, theta
        milestones.append(best)
        if on_iteration is not None:
            on_iteration(iteration, loss)
        if iteration >= window and milestones[-window - 1] - best <= tolerance * best:
            break
    return best_theta, best, len(milestones) - 1, evaluations


def _evaluate(theta: Tensor, target: Tensor) -> tuple[float, Tensor]:
    with torch.enable_grad():
        theta = theta.detach().requires_grad_()
        difference = target - frame_of_parameters(theta)
        loss = (difference.conj() * difference).real.sum()
        (gradient,) = torch.autograd.grad(loss, theta)
    return float(loss.detach()), gradient


def _barzilai_borwein(moved: Tensor, changed: Tensor, before: float) -> float:
    """The step 1 / (curvature along the last move), within a factor of ten of the last one."""
    curvature = float((moved.conj() * changed).real.sum())
    length = float(torch.linalg.vector_norm(moved)) ** 2
    if curvature <= 0 or length == 0:
        return 2 * before
    return min(max(length / curvature, before / 10), 10 * before)
