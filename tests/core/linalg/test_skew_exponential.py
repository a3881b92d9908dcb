from __future__ import annotations

import pytest
import torch

from stiefel.linalg import orthogonality_defect, skew
from stiefel.linalg.skew_exponential import exp_skew


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("size", [0.0, 1e-9, 0.3, 3.0, 100.0])
def test_is_the_exponential_with_its_gradient(size: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a = size * skew(torch.randn(2, 9, 9, dtype=dtype, generator=generator))
    weight = torch.randn(2, 9, 9, dtype=dtype, generator=generator)
    found, gradients = [], []
    for exponential in (exp_skew, torch.matrix_exp):
        x = a.clone().requires_grad_()
        found.append(exponential(x))
        (found[-1] * weight).real.sum().backward()
        assert x.grad is not None
        gradients.append(skew(x.grad))
    assert torch.allclose(found[0], found[1], atol=1e-12 * (1 + size))
    assert torch.allclose(gradients[0], gradients[1], atol=1e-11 * (1 + size))
    assert float(orthogonality_defect(found[0].detach()).max()) < 1e-12 * (1 + size)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision_stays_orthogonal(dtype: torch.dtype) -> None:
    a = skew(torch.randn(40, 40, dtype=dtype, generator=torch.Generator().manual_seed(0)))
    assert float(orthogonality_defect(exp_skew(a))) < 1e-4


def test_empty_and_non_finite_matrices_pass_through() -> None:
    assert exp_skew(torch.zeros(0, 3, 3)).shape == (0, 3, 3)
    assert exp_skew(torch.full((2, 2), torch.nan)).isnan().all()
