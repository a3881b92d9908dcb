from __future__ import annotations

import pytest
import torch

from stiefel.linalg.newton import newton_steps
from stiefel.linalg.spectrum import norm_bound


def matrix(p: int, condition: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(p)
    left, right = (
        torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=generator))[0]
        for _ in range(2)
    )
    exponent = torch.log10(torch.tensor(condition)).item()
    return (left * torch.logspace(1, 1 - exponent, p, dtype=torch.float64)) @ right


@pytest.mark.parametrize("p", [40, 300])
@pytest.mark.parametrize(("condition", "most"), [(1.5, 2), (1e2, 3), (1e4, 4), (1e8, 5)])
def test_few_steps_bring_the_singular_values_close_to_one(
    p: int, condition: float, most: int
) -> None:
    x = matrix(p, condition)
    found = newton_steps(x)
    assert found is not None
    iterate, steps, estimate = found
    squares = torch.linalg.svdvals(iterate).square()
    assert float((squares - 1).abs().max()) < 0.2
    assert steps <= most
    assert condition * 0.8 < estimate < p**0.5 * condition
    left, _, right = torch.linalg.svd(x)
    rest = (left @ right).mT @ iterate
    assert torch.allclose(rest, rest.mT, atol=1e-6)


def test_a_singular_matrix_is_told_from_its_inverse() -> None:
    assert newton_steps(torch.zeros(4, 4)) is None
    assert newton_steps(torch.stack([torch.eye(300), torch.diag(torch.arange(300.0))])) is None


def test_the_bound_on_the_norm_is_close_and_not_below() -> None:
    for p in (40, 300):
        x = matrix(p, 1e3)
        ratio = float(norm_bound(x)) / float(torch.linalg.matrix_norm(x, ord=2))
        assert 1 <= ratio < 2


@pytest.mark.parametrize("p", [40, 300])
def test_the_inverse_of_a_nearly_singular_matrix_does_not_overflow(p: int) -> None:
    x = torch.diag(torch.linspace(1, 2, p))
    x[0, 0] = 1e-12
    found = newton_steps(x)
    assert found is not None
    assert found[2] > 1e12
    assert torch.allclose(found[0], torch.eye(p), atol=0.1)
