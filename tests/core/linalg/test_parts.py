from __future__ import annotations

import pytest
import torch

from stiefel.linalg import hermitian, orthogonality_defect, skew


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_parts_add_up_and_have_their_symmetry(dtype: torch.dtype) -> None:
    a = torch.randn(3, 5, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hermitian(a) + skew(a), a)
    assert torch.equal(hermitian(a), hermitian(a).mH)
    assert torch.equal(skew(a), -skew(a).mH)


def test_defect_is_zero_for_orthonormal_columns_and_batches() -> None:
    x = torch.eye(6, 4, dtype=torch.complex64).expand(2, 3, 6, 4)
    defect = orthogonality_defect(x)
    assert defect.shape == (2, 3)
    assert defect.dtype == torch.float32
    assert not defect.any()


def test_defect_of_half_precision_is_measured_in_float32() -> None:
    x = torch.full((1, 1), 1.0 + 2**-7, dtype=torch.bfloat16)
    assert orthogonality_defect(x).item() == pytest.approx((1 + 2**-7) ** 2 - 1, rel=1e-6)
