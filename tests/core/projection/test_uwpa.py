from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.linalg import orthogonality_defect
from stiefel.projection.lie import frame_of_parameters, parameters_of_skew, skew_of_parameters
from stiefel.projection.nearest import nearest_unitary
from stiefel.projection.unitary_log import unitary_log
from stiefel.projection.uwpa import uwpa


def gaussian(n: int, m: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, m, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_determinant(w: Tensor, sign: int) -> Tensor:
    return w if float(torch.linalg.det(w)) * sign > 0 else torch.cat([-w[:1], w[1:]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_reaches_the_closed_form_where_the_determinant_allows(dtype: torch.dtype) -> None:
    fit = uwpa(with_determinant(gaussian(16, 16, dtype), 1))
    assert fit.determinant_gap == 0
    assert fit.optimum <= fit.loss * (1 + 1e-6)
    assert fit.loss <= 1.001 * fit.optimum


def test_a_reflection_is_missed_by_four_least_singular_values() -> None:
    w = with_determinant(gaussian(16, 16), -1)
    fit = uwpa(w, scale="none", tolerance=1e-8)
    least = float(torch.linalg.svdvals(w)[-1])
    assert fit.determinant_gap == pytest.approx(4 * least)
    assert fit.loss == pytest.approx(fit.optimum + 4 * least, rel=1e-3)
    rotation = nearest_unitary(w, determinant=1)
    assert fit.optimum + fit.determinant_gap == pytest.approx(rotation.distance**2)


@pytest.mark.parametrize("dtype", [torch.complex128, torch.complex64])
@pytest.mark.parametrize("shape", [(10, 10), (8, 4), (4, 8)])
def test_complex_square_tall_and_wide_have_no_obstruction(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    w = gaussian(*shape, dtype)
    fit = uwpa(w, tolerance=1e-6)
    frame = fit.factor if shape[0] >= shape[1] else fit.factor.mH
    assert fit.factor.shape == w.shape
    assert fit.defect == pytest.approx(float(orthogonality_defect(frame)))
    assert fit.determinant_gap == 0
    assert fit.optimum <= fit.loss * (1 + 1e-6)
    # Backpropagation can stop at a singular point of the exponential a little above the optimum.
    assert fit.loss <= 1.02 * fit.optimum


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (6, 18)])
def test_real_tall_and_wide_and_flattened_kernels(shape: tuple[int, int]) -> None:
    w = gaussian(*shape)
    fit = uwpa(w)
    frame = fit.factor if shape[0] >= shape[1] else fit.factor.mH
    assert float(orthogonality_defect(frame)) < 1e-11
    assert fit.loss <= 1.005 * fit.optimum
    assert fit.loss == pytest.approx(float((w / fit.gain - fit.factor).square().sum()))
    assert torch.allclose(frame_of_parameters(fit.parameters), frame)


def test_progress_is_reported_and_may_stop_the_fit() -> None:
    seen: list[tuple[int, float]] = []
    fit = uwpa(gaussian(8, 8), on_iteration=lambda i, loss: seen.append((i, loss)))
    assert [i for i, _ in seen] == list(range(1, fit.iterations + 1))
    assert min(loss for _, loss in seen) == fit.loss

    def stop(iteration: int, loss: float) -> None:
        raise StopRequested("enough")

    with pytest.raises(StopRequested):
        uwpa(gaussian(8, 8), on_iteration=stop)


def test_a_unitary_matrix_is_recovered() -> None:
    q = torch.matrix_exp(skew_of_parameters(0.3 * gaussian(8, 8)))
    fit = uwpa(q, tolerance=1e-12)
    assert fit.loss < 1e-8
    assert torch.allclose(fit.factor, q, atol=1e-4)


def test_limit_one_and_half_precision_and_one_by_one() -> None:
    assert uwpa(gaussian(8, 8), limit=1).iterations == 1
    assert uwpa(gaussian(8, 8).bfloat16()).factor.dtype == torch.float32
    assert uwpa(torch.tensor([[-2.0]])).determinant_gap == 4.0


@pytest.mark.parametrize("w", [torch.zeros(3, 3), torch.full((2, 2), torch.inf), torch.ones(3)])
def test_unusable_weights_are_refused(w: Tensor) -> None:
    with pytest.raises(InvalidInputError):
        uwpa(w)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_parameters_round_trip_through_the_logarithm(dtype: torch.dtype) -> None:
    w = gaussian(9, 9, dtype)
    q = nearest_unitary(w, determinant=1).factor
    theta = parameters_of_skew(unitary_log(q), 9)
    assert torch.allclose(frame_of_parameters(theta), q, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_parameters_are_the_inverse_of_their_skew_matrix(dtype: torch.dtype) -> None:
    algebra = skew_of_parameters(gaussian(7, 3, dtype))
    assert torch.equal(algebra, -algebra.mH)
    assert torch.equal(skew_of_parameters(parameters_of_skew(algebra, 3)), algebra)
