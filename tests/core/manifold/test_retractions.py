"""What every retraction must do; a new one inherits all of it by being in RETRACTIONS."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.linalg import orthogonality_defect, skew
from stiefel.manifold import RETRACTIONS, project_tangent, random_point, random_tangent
from stiefel.manifold.unitary import cayley_step, exp_step, random_skew, skew_of_tangent

every_retraction = pytest.mark.parametrize("name", list(RETRACTIONS))
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
every_shape = pytest.mark.parametrize("shape", [(6, 6), (9, 4), (3, 7, 2), (5, 4), (4, 1)])
SECOND_ORDER = {"polar", "cayley", "exp"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = random_point(*shape, generator=generator(), dtype=dtype)
    return x, random_tangent(x, generator=generator(1))


@every_retraction
@every_dtype
@every_shape
@pytest.mark.parametrize("length", [1e-12, 0.1, 1.0, 30.0])
def test_lands_on_the_manifold(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, length: float
) -> None:
    x, z = start(shape, dtype)
    defect = orthogonality_defect(RETRACTIONS[name](x, length * z))
    assert float(defect.max()) < 1e-12 * max(1.0, length)


@every_retraction
@every_dtype
def test_lands_on_the_manifold_in_single_precision(name: str, dtype: torch.dtype) -> None:
    x, z = (
        t.to(torch.complex64 if dtype.is_complex else torch.float32) for t in start((30, 8), dtype)
    )
    assert float(orthogonality_defect(RETRACTIONS[name](x, z))) < 1e-5


@every_retraction
@every_dtype
@every_shape
def test_a_zero_step_stays(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, z = start(shape, dtype)
    assert torch.allclose(RETRACTIONS[name](x, 0 * z), x, atol=1e-14)


@every_retraction
@every_dtype
@every_shape
def test_agrees_with_the_straight_line_to_first_order(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, z = start(shape, dtype)
    errors = [
        float(torch.linalg.matrix_norm(RETRACTIONS[name](x, t * z) - x - t * z).max())
        for t in (1e-3, 5e-4)
    ]
    assert errors[0] < 1e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("name", sorted(SECOND_ORDER))
@every_dtype
@every_shape
def test_second_order_retractions_accelerate_only_along_the_normal(
    name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, z = start(shape, dtype)
    if name in {"cayley", "exp"} and shape[-2] != shape[-1]:
        z = z - x @ (x.mH @ z)  # their geodesics are canonical; the metrics agree on this part
    t = 1e-3
    second = (RETRACTIONS[name](x, t * z) - 2 * x + RETRACTIONS[name](x, -t * z)) / t**2
    assert float(torch.linalg.matrix_norm(project_tangent(x, second)).max()) < 1e-4


@every_retraction
@every_dtype
def test_a_batch_equals_its_loop(name: str, dtype: torch.dtype) -> None:
    x, z = start((4, 7, 3), dtype)
    looped = torch.stack([RETRACTIONS[name](a, b) for a, b in zip(x, z, strict=True)])
    assert torch.allclose(RETRACTIONS[name](x, z), looped, atol=1e-13)


@every_dtype
def test_exp_is_a_geodesic_flow(dtype: torch.dtype) -> None:
    x, z = start((7, 7), dtype)
    halfway = RETRACTIONS["exp"](x, z / 2)
    velocity = halfway @ (x.mH @ z) / 2
    assert torch.allclose(RETRACTIONS["exp"](halfway, velocity), RETRACTIONS["exp"](x, z))


@every_dtype
def test_tall_retractions_agree_with_the_group_acting_on_columns(dtype: torch.dtype) -> None:
    whole = random_point(8, 8, generator=generator(), dtype=dtype)
    x = whole[:, :3]
    z = random_tangent(x, generator=generator(1))
    pz = z - x @ (x.mH @ z) / 2
    w = pz @ x.mH - x @ pz.mH
    eye = torch.eye(8, dtype=dtype)
    assert torch.allclose(RETRACTIONS["exp"](x, z), torch.matrix_exp(w) @ x)
    assert torch.allclose(
        RETRACTIONS["cayley"](x, z), torch.linalg.solve(eye - w / 2, (eye + w / 2) @ x)
    )


@every_dtype
def test_group_steps_agree_with_the_retractions(dtype: torch.dtype) -> None:
    u, z = start((6, 6), dtype)
    s = skew_of_tangent(u, z)
    assert torch.allclose(exp_step(u, s), RETRACTIONS["exp"](u, z))
    assert torch.allclose(cayley_step(u, s), RETRACTIONS["cayley"](u, z))
    drawn = random_skew(2, 5, 5, generator=generator(), dtype=dtype)
    assert torch.equal(drawn, skew(drawn))


def test_group_steps_keep_the_determinant() -> None:
    u, z = start((5, 5), torch.float64)
    s = skew_of_tangent(u, z)
    for step in (exp_step, cayley_step):
        assert float(torch.linalg.det(step(u, s))) == pytest.approx(float(torch.linalg.det(u)))
