from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.manifold import random_point
from stiefel.projection.nearest import nearest_unitary

DTYPES = [torch.float64, torch.complex128]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(n: int, m: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, m, dtype=dtype, generator=generator(seed))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 7), (9, 4), (4, 9)])
@pytest.mark.parametrize("scale", ["none", "mean"])
def test_distance_is_the_closed_form(
    shape: tuple[int, int], dtype: torch.dtype, scale: str
) -> None:
    w = gaussian(*shape, dtype)
    near = nearest_unitary(w, scale=scale)  # type: ignore[arg-type]
    sigma = torch.linalg.svdvals(w)
    gain = float(sigma.mean()) if scale == "mean" else 1.0
    frame = near.factor if shape[0] >= shape[1] else near.factor.mH
    assert near.factor.shape == w.shape
    assert float(orthogonality_defect(frame)) < 1e-12
    assert near.gain == pytest.approx(gain)
    assert near.distance == pytest.approx(float(torch.linalg.norm(w - gain * near.factor)))
    assert near.distance == pytest.approx(float((sigma - gain).square().sum().sqrt()))
    assert near.distance == near.optimum


@pytest.mark.parametrize("n", [2, 3, 8])
@pytest.mark.parametrize("scale", ["none", "mean"])
def test_rotation_costs_four_least_singular_values(n: int, scale: str) -> None:
    w = gaussian(n, n)
    w = w if torch.linalg.det(w) < 0 else torch.cat([-w[:1], w[1:]])
    near = nearest_unitary(w, determinant=1, scale=scale)  # type: ignore[arg-type]
    least = float(torch.linalg.svdvals(w)[-1])
    assert near.turned
    assert float(torch.linalg.det(near.factor)) == pytest.approx(1)
    assert near.distance**2 - near.optimum**2 == pytest.approx(4 * near.gain * least)
    for seed in range(200):
        q = random_point(n, n, generator=generator(seed), dtype=torch.float64)
        if torch.linalg.det(q) > 0:
            assert near.distance <= float(torch.linalg.norm(w - near.gain * q)) + 1e-12


def test_determinant_leaves_rotations_tall_and_complex_matrices_alone() -> None:
    w = gaussian(5, 5)
    w = w if torch.linalg.det(w) > 0 else torch.cat([-w[:1], w[1:]])
    for x in (w, gaussian(6, 3), gaussian(5, 5, torch.complex128)):
        near = nearest_unitary(x, determinant=1)
        assert not near.turned
        assert torch.equal(near.factor, nearest_unitary(x).factor)


def test_scale_of_the_input_only_changes_the_gain() -> None:
    w = gaussian(6, 6)
    near, far = nearest_unitary(w, scale="mean"), nearest_unitary(w * 1e20, scale="mean")
    assert torch.allclose(near.factor, far.factor)
    assert far.gain == pytest.approx(near.gain * 1e20)


def test_unusable_input_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="mean singular value"):
        nearest_unitary(torch.zeros(3, 3), scale="mean")
    with pytest.raises(InvalidInputError, match="matrix is needed"):
        nearest_unitary(torch.zeros(3, 3, 3))
    with pytest.raises(InvalidInputError, match="non-finite"):
        nearest_unitary(torch.full((3, 3), torch.nan))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_determinant_of_a_large_matrix_does_not_underflow(dtype: torch.dtype) -> None:
    for seed in range(3):
        q = random_point(384, 384, generator=generator(seed), dtype=dtype)
        sign = torch.linalg.slogdet(q.double()).sign
        q[:, 0] *= -sign  # a reflection whatever was drawn
        near = nearest_unitary(q, determinant=1)
        assert near.turned
        assert float(torch.linalg.slogdet(near.factor).sign) == 1


@pytest.mark.parametrize("scale", ["none", "mean"])
@pytest.mark.parametrize(("size", "noise"), [(512, 0.0), (64, 1e-4), (64, 1e-7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distance_of_a_nearly_orthogonal_matrix_keeps_its_digits(
    dtype: torch.dtype, size: int, noise: float, scale: str
) -> None:
    q = random_point(size, size, generator=generator(), dtype=dtype)
    w = (3.0 if scale == "mean" else 1.0) * (q + noise * gaussian(size, size, dtype))
    near = nearest_unitary(w, scale=scale)  # type: ignore[arg-type]
    distance = float(torch.linalg.norm(w.double() - near.gain * near.factor.double()))
    assert near.distance == pytest.approx(distance, rel=1e-9)
    sigma = torch.linalg.svdvals(w.double())
    # Beyond the optimum lies only the rounding of the factor.
    rounding = 3 * size * torch.finfo(dtype).eps
    assert near.distance == pytest.approx(float((sigma - near.gain).norm()), abs=rounding)
    assert near.gain == pytest.approx(float(sigma.mean()) if scale == "mean" else 1.0, rel=1e-6)
