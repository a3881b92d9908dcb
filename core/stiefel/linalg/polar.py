"""Polar decomposition X = U H. All functions batch over leading dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError, NotConvergedError
from stiefel.linalg.choice import (
    ON_ACCELERATOR,
    PROBED_FROM,
    TALL,
    WIDE_SPREAD,
    batched,
    guessed_ratio,
    ranking,
)
from stiefel.linalg.newton import newton_steps
from stiefel.linalg.newton_schulz import Iterate, newton_schulz
from stiefel.linalg.parts import gram_residual, skew
from stiefel.linalg.polynomial import CLOSE, polynomial_steps
from stiefel.linalg.precision import in_whole_precision
from stiefel.linalg.spectrum import (
    exceeds,
    largest_eigenvalue,
    mean_eigenvalue,
    probed_spread,
    spread,
)

Algorithm = Literal["auto", "svd", "newton", "newton_schulz", "polynomial", "gram"]

# Bounds of the choice; benchmarks/polar.py measures each algorithm on both sides of them.
NEAR = 0.6  # bound on the residual's norm under which the binomial series beats everything
REACH = 1.6  # bound up to which it still converges
NEAR_SPREAD = 0.12  # spread of the eigenvalues of G under which that is worth finding out
PROBED_NEAR = 0.25  # NEAR_SPREAD for the estimate of a probe
GUARD_FROM = 512  # p from which a Cholesky factorisation is cheap enough to ask every time
FLOOR = 5e-4  # least eigenvalue of G over its mean from which the Gram form is accurate
ROUNDS = 6  # of the polynomial, each of which multiplies small singular values by 50
NEXT = 0.03  # lower end of the interval of a further round
REACHED = 0.95  # bound on the residual's norm that tells a round's success


class Polar(NamedTuple):
    """A polar factor and the evidence that it is one."""

    factor: Tensor  # (..., n, p)  U, with U^H U = I_p
    defect: Tensor  # (...,)       ||U^H U - I||_F, measured, not assumed
    iterations: int  # of the iteration, or corrections of the SVD and the Gram form
    algorithm: str  # the one that was used


@in_whole_precision
def polar_factor(
    x: Tensor, *, algorithm: Algorithm = "auto", tolerance: float | None = None
) -> Polar:
    """Return the polar factor U, the point of St(n, p) nearest to ``x`` in Frobenius norm.

    The factor does not change when ``x`` is scaled, however far. Where ``x`` is singular (zero
    included) the nearest point is not unique: the SVD's is returned, orthonormal all the same.

    Args:
        x: ``(..., n, p)`` with n >= p; real or complex. Half precision is computed, and the
            factor returned, in float32: rounding it is the caller's choice.
        algorithm: ``svd`` always works, ``newton`` for every matrix of full rank.
            ``newton_schulz`` is for nearly orthonormal columns, ``gram`` for condition numbers
            up to about 100, ``polynomial`` for small matrices. ``auto`` chooses for the whole
            batch from its worst member, at a cost of some per cent.
        tolerance: bound on the defect. Default: ``2 * p * eps`` of the dtype, p at least 8.

    Raises:
        InvalidInputError: n < p, non-finite entries, an integer dtype, a sparse tensor or an
            unknown algorithm.
        NotConvergedError: the defect stayed above ``tolerance``.

    Source: Higham, Functions of Matrices, SIAM 2008, ch. 8.
    """
    x, size = _prepared(x)
    if not x.numel():
        return Polar(x, torch.linalg.matrix_norm(x), 0, "svd")
    bound = default_tolerance(x) if tolerance is None else tolerance
    if algorithm != "auto" and algorithm not in ALGORITHMS:
        raise InvalidInputError(
            f"no polar algorithm is named {algorithm!r}", fix=f"use auto or one of {[*ALGORITHMS]}"
        )
    result = _auto(x, bound, size) if algorithm == "auto" else ALGORITHMS[algorithm](x, bound)
    missed = result is None or _misses(result, bound)
    if missed and algorithm == "auto":
        result = _svd(x, bound)
        missed = _misses(result, bound)
    if result is None or missed:
        measured = "unknown" if result is None else f"{float(result.defect.max()):.2e}"
        raise NotConvergedError(
            f"{algorithm}: the orthogonality defect is {measured}, above {bound:.2e}",
            fix='use algorithm="svd", raise the tolerance or pass float64',
        )
    return result


def default_tolerance(x: Tensor) -> float:
    """Return the bound on the defect of a factor: ``2 * p * eps`` of the dtype, p at least 8."""
    return 2 * max(8, x.shape[-1]) * torch.finfo(x.dtype).eps


def _prepared(x: Tensor) -> tuple[Tensor, float | None]:
    """Check ``x``, widen half precision, and bring extreme magnitudes to 1.

    Returns also the Frobenius norm, of a single matrix where it was not scaled.
    """
    if x.ndim < 2 or x.shape[-2] < x.shape[-1]:
        raise InvalidInputError(
            f"polar_factor needs (..., n, p) with n >= p, got {tuple(x.shape)}",
            code="wide_matrix",
            fix="pass the conjugate transpose and transpose the factor back",
        )
    if not (x.is_floating_point() or x.is_complex()) or x.layout != torch.strided:
        raise InvalidInputError(
            f"polar_factor needs a dense tensor of floating point, got {x.dtype}, {x.layout}"
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    x = x.detach()
    if not x.numel():
        return x, None
    # Within these norms eighth powers of singular values neither overflow nor vanish. The largest
    # entry, which is slow to find, matters only outside.
    least, most = _range(torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True))
    if least > 1e-3 and most < 1e4:
        return x, most if x.ndim == 2 else None
    peak = torch.linalg.vector_norm(x, ord=torch.inf, dim=(-2, -1), keepdim=True)
    if not math.isfinite(_range(peak)[1]):
        raise InvalidInputError(
            "the matrix holds non-finite entries",
            code="non_finite_weights",
            fix="remove NaN or inf",
        )
    return x / torch.where(peak > 0, peak, 1), None


def _range(values: Tensor) -> tuple[float, float]:
    if values.numel() == 1:
        value = float(values)
        return value, value
    return float(values.min()), float(values.max())


def _misses(result: Polar, bound: float) -> bool:
    defect = result.defect
    # Written so that NaN misses; a host value is read once, tiny matrices feel each operation.
    return not float(defect.max() if defect.ndim else defect) <= bound


def _auto(x: Tensor, bound: float, size: float | None) -> Polar | None:
    """The algorithm that suits ``x``, or None where only the SVD does."""
    n, p = x.shape[-2:]
    host = x.device.type == "cpu"
    names: Sequence[str] = ()
    # Tall, the Gram matrix is most often used; on an accelerator always.
    if host and p >= PROBED_FROM and n < TALL * p:
        width = probed_spread(x)
        if not width <= PROBED_NEAR:
            names = ranking(x, probed_spread(x, probes=2))
    gram = x.mH @ x if not names or names[0] == "gram" else None
    if gram is not None:
        width = spread(x, gram, size)
        if width <= NEAR_SPREAD:
            near = _near(x, gram, bound)
            if near is not None:
                return near
        names = ranking(x, width) if host else ON_ACCELERATOR
    for name in names:
        result = _attempted(name, x, bound, gram, width)
        if result is not None:
            return result
    return None


def _attempted(
    name: str, x: Tensor, bound: float, gram: Tensor | None, width: float
) -> Polar | None:
    if name == "polynomial" and gram is not None:
        return _polynomial(x, bound, gram, rounds=_rounds(x))
    if name == "gram" and gram is not None:
        return _gram(x, bound, gram) if _fits_gram(gram, width) else None
    return ALGORITHMS[name](x, bound)


def _rounds(x: Tensor) -> int:
    """Of the polynomial, after which something else is cheaper on this device."""
    if x.device.type != "cpu":
        return ROUNDS
    # The least singular value of many matrices lies far below that of one.
    return 4 if batched(x) else 2


def _fits_gram(gram: Tensor, width: float) -> bool:
    if not width <= WIDE_SPREAD:
        return False
    doubtful = gram.shape[-1] >= GUARD_FROM
    return not doubtful or exceeds(gram, FLOOR * mean_eigenvalue(gram))


def _near(x: Tensor, gram: Tensor, bound: float) -> Polar | None:
    mean = mean_eigenvalue(gram)
    residual = gram / mean
    residual.diagonal(dim1=-2, dim2=-1).sub_(1)
    for reach in (NEAR, REACH):
        # Beyond the first reach a few small singular values could hide among good ones.
        if reach == REACH and not exceeds(gram, mean / 8):
            return None
        scale = mean.rsqrt()
        iterate = newton_schulz(x, residual, bound, limit=6, reach=reach, scale=scale)
        if iterate is not None:
            return _polar(iterate, "newton_schulz")
    return None


def _polar(iterate: Iterate, name: str, *, before: int = 0) -> Polar:
    return Polar(iterate.factor, iterate.defect, iterate.iterations + before, name)


def _newton_schulz(x: Tensor, bound: float) -> Polar | None:
    gram = x.mH @ x
    if spread(x, gram) <= NEAR_SPREAD:
        near = _near(x, gram, bound)
        if near is not None:
            return near
    # The series needs eigenvalues of X^H X under 3; the mean serves until they spread.
    scale = torch.maximum(mean_eigenvalue(gram), largest_eigenvalue(gram) / 1.5)
    residual = gram / scale
    residual.diagonal(dim1=-2, dim2=-1).sub_(1)
    iterate = newton_schulz(x * scale.rsqrt(), residual, bound, limit=60)
    return iterate and _polar(iterate, "newton_schulz")


def _polynomial(
    x: Tensor, bound: float, gram: Tensor | None = None, *, rounds: int = ROUNDS
) -> Polar | None:
    gram = x.mH @ x if gram is None else gram
    lower, top, before = guessed_ratio(x, spread(x, gram)), None, 0
    for _ in range(rounds):
        x, steps = polynomial_steps(x, gram, lower, top=top)
        before += steps
        gram = gram_residual(x)
        iterate = newton_schulz(x, gram, bound, limit=6, reach=REACHED)
        if iterate is not None:
            return _polar(iterate, "polynomial", before=before)
        gram.diagonal(dim1=-2, dim2=-1).add_(1)
        lower, top = NEXT, (1 + CLOSE) ** 2
    return None


def _newton(x: Tensor, bound: float) -> Polar | None:
    n, p = x.shape[-2:]
    q, square = torch.linalg.qr(x) if n > p else (None, x)
    found = newton_steps(square)
    if found is None:
        return None
    square, steps, condition = found
    iterate = newton_schulz(square, gram_residual(square), bound, limit=6)
    if iterate is not None and q is not None:
        factor = q @ iterate.factor
        iterate = newton_schulz(factor, gram_residual(factor), bound, limit=1)
    assert iterate is not None  # it gives up only where a reach is set
    if condition * torch.finfo(x.dtype).eps > 1 and not _backward_stable(x, iterate.factor):
        return None
    return _polar(iterate, "newton", before=steps)


def _backward_stable(x: Tensor, factor: Tensor) -> bool:
    """Whether U^H X is Hermitian to rounding, where an inverse may hold no correct digit."""
    rest = factor.mH @ x
    error = torch.linalg.matrix_norm(skew(rest)) / torch.linalg.matrix_norm(x)
    return bool((error <= x.shape[-1] * torch.finfo(x.dtype).eps).all())


def _gram(x: Tensor, bound: float, gram: Tensor | None = None) -> Polar | None:
    """U = X (X^H X)^(-1/2) by an eigendecomposition, then corrections; squares the condition."""
    values, vectors = torch.linalg.eigh(x.mH @ x if gram is None else gram)
    if not bool((values[..., 0] > FLOOR / 8 * values[..., -1]).all()):
        return None
    root = (vectors * values.rsqrt().unsqueeze(-2)) @ vectors.mH
    factor = x @ root
    iterate = newton_schulz(factor, gram_residual(factor), bound, limit=3)
    return iterate and _polar(iterate, "gram")


def _svd(x: Tensor, bound: float) -> Polar:
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    factor = left @ right
    residual = gram_residual(factor)
    # LAPACK's vectors can miss a tight tolerance by a little; one correction mends that.
    iterate = newton_schulz(factor, residual, bound, limit=1)
    assert iterate is not None  # it gives up only where a reach is set
    return _polar(iterate, "svd")


ALGORITHMS: dict[str, Callable[[Tensor, float], Polar | None]] = {
    "svd": _svd,
    "newton": _newton,
    "newton_schulz": _newton_schulz,
    "polynomial": _polynomial,
    "gram": _gram,
}
