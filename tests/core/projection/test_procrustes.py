from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.manifold import random_point
from stiefel.projection.nearest import nearest_unitary
from stiefel.projection.procrustes import procrustes, procrustes_for_moment


def gaussian(n: int, m: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, m, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def skewed_inputs(m: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Inputs with a few strong directions, as activations have them."""
    return gaussian(200, m, dtype, 5) * torch.logspace(0, -2, m, dtype=torch.float64)


def distance(w: Tensor, x: Tensor, q: Tensor, gain: float = 1.0) -> float:
    return float(torch.linalg.norm(x @ (w - gain * q).mT) / torch.linalg.norm(x @ w.mT))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9)])
@pytest.mark.parametrize("scale", ["none", "mean"])
def test_distance_is_that_of_the_outputs_and_beats_other_frames(
    shape: tuple[int, int], dtype: torch.dtype, scale: str
) -> None:
    w, x = gaussian(*shape, dtype), skewed_inputs(shape[1], dtype)
    fit = procrustes(w, x, scale=scale)  # type: ignore[arg-type]
    frame = fit.factor if shape[0] >= shape[1] else fit.factor.mH
    assert fit.exact == (shape[0] >= shape[1])
    assert float(orthogonality_defect(frame)) < 1e-12
    assert fit.distance == pytest.approx(distance(w, x, fit.factor, fit.gain), rel=1e-6)
    assert fit.distance <= fit.plain_distance + 1e-12
    for seed in range(100):
        q = random_point(
            max(shape), min(shape), generator=torch.Generator().manual_seed(seed), dtype=dtype
        )
        q = q if shape[0] >= shape[1] else q.mH
        assert fit.distance <= distance(w, x, q, fit.gain) + 1e-12


@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9)])
def test_no_small_rotation_improves_it(shape: tuple[int, int]) -> None:
    w, x = gaussian(*shape), skewed_inputs(shape[1])
    fit = procrustes(w, x, tolerance=1e-13, limit=2000)
    for seed in range(20):
        skewed = gaussian(shape[1], shape[1], seed=seed)
        turn = torch.matrix_exp(1e-3 * (skewed - skewed.mT))
        assert fit.distance <= distance(w, x, fit.factor @ turn) + 1e-7


def test_white_inputs_give_the_nearest_matrix() -> None:
    w, x = gaussian(6, 6), random_point(50, 6, generator=torch.Generator(), dtype=torch.float64)
    assert torch.allclose(procrustes(w, x).factor, nearest_unitary(w).factor)


def test_an_orthonormal_weight_is_its_own_answer() -> None:
    q = random_point(7, 4, generator=torch.Generator(), dtype=torch.float64)
    assert torch.allclose(procrustes(q, skewed_inputs(4)).factor, q)
    wide = procrustes(q.mT, gaussian(100, 7))
    assert torch.allclose(wide.factor, q.mT)
    assert wide.distance < 1e-6


def test_inputs_of_any_rank_and_half_precision_are_taken() -> None:
    w, x = gaussian(6, 6).bfloat16(), skewed_inputs(6).reshape(20, 10, 6).bfloat16()
    fit = procrustes(w, x)
    assert fit.factor.dtype == torch.float32
    assert float(orthogonality_defect(fit.factor)) < 1e-5


def test_unusable_inputs_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="do not fit"):
        procrustes(gaussian(3, 4), gaussian(5, 3))
    with pytest.raises(InvalidInputError, match="non-finite"):
        procrustes(gaussian(3, 3), torch.full((5, 3), torch.nan))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_wanted_outputs_may_differ_from_those_of_the_weights(dtype: torch.dtype) -> None:
    w, x = gaussian(6, 6, dtype), skewed_inputs(6, dtype)
    q = random_point(6, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)
    same = procrustes(w, x, outputs=x @ w.mT)
    assert torch.allclose(same.factor, procrustes(w, x).factor)
    assert same.distance == pytest.approx(procrustes(w, x).distance)
    turned = procrustes(w, x, outputs=3 * x @ q.mT, scale="mean")
    assert torch.allclose(turned.factor, q)
    assert turned.gain == pytest.approx(3)
    with pytest.raises(InvalidInputError, match="outputs"):
        procrustes(w, x, outputs=gaussian(5, 6, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("scale", ["none", "mean"])
def test_the_distance_of_an_orthonormal_weight_is_its_rounding(
    dtype: torch.dtype, wanted: bool, scale: str
) -> None:
    w = random_point(32, 32, generator=torch.Generator().manual_seed(2), dtype=dtype)
    x = gaussian(200, 32, dtype, 5) * torch.logspace(0, -2, 32, dtype=dtype.to_real())
    fit = procrustes(w, x, outputs=x @ w.mT if wanted else None, scale=scale)  # type: ignore[arg-type]
    assert max(fit.distance, fit.plain_distance) < 32 * torch.finfo(dtype).eps


@pytest.mark.parametrize("factor", [1e-25, 1e25])
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("shape", [(6, 6), (9, 5), (5, 9)])
def test_inputs_of_any_magnitude_give_the_same_answer(
    shape: tuple[int, int], wanted: bool, factor: float
) -> None:
    w, x = gaussian(*shape, torch.float32), skewed_inputs(shape[1]).float()
    outputs = [s * x @ w.mT if wanted else None for s in (1.0, factor)]
    usual = procrustes(w, x, outputs=outputs[0], scale="mean")
    other = procrustes(w, x * factor, outputs=outputs[1], scale="mean")
    assert torch.allclose(other.factor, usual.factor, atol=1e-4)
    assert other.distance == pytest.approx(usual.distance, rel=1e-4)
    assert other.gain == pytest.approx(usual.gain, rel=1e-4)


def test_directions_without_data_cost_no_distance() -> None:
    """They decide which factor is nearest, but no output shows them."""
    w = gaussian(6, 6)
    x = torch.zeros(50, 6, dtype=torch.float64)
    x[:, 0] = 1.0
    w[:, 0] /= w[:, 0].norm()
    assert procrustes_for_moment(w, x.mT @ x).distance < 1e-8
