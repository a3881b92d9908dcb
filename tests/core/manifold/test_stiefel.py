from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import hermitian, orthogonality_defect
from stiefel.manifold import (
    inner_canonical,
    inner_euclidean,
    project_tangent,
    random_point,
    random_tangent,
)
from stiefel.manifold.stiefel import gradient_canonical, gradient_euclidean, tangent_defect

DTYPES = [torch.float64, torch.complex128]
SHAPES = [(6, 6), (9, 4), (3, 7, 2), (5, 1)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ambient(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, dtype=x.dtype, generator=generator(seed))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", SHAPES)
def test_random_points_lie_on_the_manifold(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random_point(*shape, generator=generator(), dtype=dtype)
    assert x.shape == shape
    assert float(orthogonality_defect(x).max()) < 20 * torch.finfo(dtype).eps


def test_random_points_are_uniform_and_reproducible() -> None:
    x = random_point(4000, 3, 3, generator=generator(), dtype=torch.float64)
    assert torch.equal(x, random_point(4000, 3, 3, generator=generator(), dtype=torch.float64))
    # Haar measure: every entry has mean 0 and variance 1 / n; both signs of the determinant.
    assert float(x.mean(0).abs().max()) < 0.04
    assert float((x.square().mean(0) - 1 / 3).abs().max()) < 0.03
    assert 0.45 < float((torch.linalg.det(x) > 0).double().mean()) < 0.55


def test_wide_points_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="n >= p"):
        random_point(3, 4, generator=generator())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_projection_is_orthogonal_and_idempotent(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = random_point(*shape, generator=generator(), dtype=dtype)
    z, other = ambient(x, 1), random_tangent(x, generator=generator(2))
    tangent = project_tangent(x, z)
    assert float(tangent_defect(x, tangent).max()) < 1e-13
    assert torch.allclose(project_tangent(x, tangent), tangent)
    assert float(inner_euclidean(z - tangent, other).abs().max()) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_square_projection_is_half_the_antisymmetrised_step(dtype: torch.dtype) -> None:
    x = random_point(6, 6, generator=generator(), dtype=dtype)
    z = ambient(x, 1)
    assert torch.allclose(project_tangent(x, z), (z - x @ z.mH @ x) / 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_gradient_represents_the_differential_in_its_metric(
    shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = random_point(*shape, generator=generator(), dtype=dtype)
    gradient, tangent = ambient(x, 1), random_tangent(x, generator=generator(2))
    differential = inner_euclidean(gradient, tangent)
    euclidean = inner_euclidean(gradient_euclidean(x, gradient), tangent)
    canonical = inner_canonical(x, gradient_canonical(x, gradient), tangent)
    assert torch.allclose(euclidean, differential)
    assert torch.allclose(canonical, differential)


def test_canonical_metric_counts_rotations_within_the_columns_half() -> None:
    x = torch.eye(5, 2, dtype=torch.float64)
    within = torch.zeros(5, 2, dtype=torch.float64)
    within[0, 1], within[1, 0] = 1.0, -1.0
    assert float(hermitian(x.mT @ within).abs().max()) == 0
    assert float(inner_euclidean(within, within)) == 2
    assert float(inner_canonical(x, within, within)) == 1
