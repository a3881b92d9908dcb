from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.manifold import random_point
from stiefel.projection.unitary_log import unitary_log


def unitary(n: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    q = random_point(n, n, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if not dtype.is_complex and float(torch.linalg.det(q)) < 0:
        q[:, 0] *= -1
    return q


def rotation(angles: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    blocks = [
        torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]], dtype=torch.float64)
        for t in angles
    ]
    v = unitary(2 * len(angles), torch.float64, 3)
    return (v @ torch.block_diag(*blocks) @ v.mT).to(dtype)


def check(q: Tensor, atol: float) -> Tensor:
    s = unitary_log(q)
    assert s.dtype == q.dtype
    assert torch.allclose(s, -s.mH)
    assert float(torch.linalg.matrix_norm(s, 2)) <= math.pi * (1 + 1e-5)
    assert float(torch.linalg.matrix_norm(torch.matrix_exp(s) - q)) < atol
    return s


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 60])
def test_exp_of_the_logarithm_is_the_matrix(n: int, dtype: torch.dtype) -> None:
    check(unitary(n, dtype), 1e-13 * (n + 10))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_single_precision(dtype: torch.dtype) -> None:
    check(unitary(20, dtype), 1e-4)


@pytest.mark.parametrize("off", [0.0, 1e-15, 1e-13, 1e-11, 1e-9, 1e-7, 1e-4, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_eigenvalues_at_and_near_minus_one(off: float, dtype: torch.dtype) -> None:
    q = rotation([math.pi - off, math.pi, 1.0, 2.2, 2.2, math.pi - 2 * off], dtype)
    check(q, 1e-11)


@pytest.mark.parametrize(
    "q",
    [
        -torch.eye(4, dtype=torch.float64),
        torch.eye(5, dtype=torch.float64),
        -torch.eye(3, dtype=torch.complex128),
        torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)),
        torch.diag(torch.tensor([1j, -1.0, 1.0], dtype=torch.complex128)),
    ],
)
def test_degenerate_spectra(q: Tensor) -> None:
    check(q, 1e-13)


def test_the_logarithm_is_principal() -> None:
    angles = [0.1, 1.0, 2.0, 3.0]
    found = torch.linalg.eigvalsh(-1j * check(rotation(angles), 1e-13)).abs()
    expected = torch.tensor(sorted([*angles, *angles]), dtype=torch.float64)
    assert torch.allclose(found.sort().values, expected)


@pytest.mark.parametrize(
    ("q", "text"),
    [
        (torch.diag(torch.tensor([1.0, -1.0])), "determinant -1"),
        (torch.ones(2, 3), "square"),
        (2 * torch.eye(2), "unitary matrix"),
        (torch.full((2, 2), torch.nan), "unitary matrix"),
    ],
)
def test_what_has_no_logarithm_is_refused(q: Tensor, text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        unitary_log(q)
