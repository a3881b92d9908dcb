from __future__ import annotations

import pytest
import torch

from stiefel.linalg.solve import inverse, solve


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
@pytest.mark.parametrize("n", [5, 200])
def test_batches_are_solved_on_several_threads(n: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(3, 1, n, n, dtype=dtype, generator=generator) / n**0.5
    a = a + 3 * torch.eye(n, dtype=dtype)
    b = torch.randn(2, n, 4, dtype=dtype, generator=generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        x = solve(a, b)
    finally:
        torch.set_num_threads(threads)
    assert x.shape == (3, 2, n, 4)
    assert torch.allclose(a @ x, b.expand_as(x), atol=1e-4 if dtype == torch.float32 else 1e-10)


def test_single_and_empty_systems() -> None:
    assert torch.equal(solve(torch.eye(3), torch.ones(3, 1)), torch.ones(3, 1))
    assert solve(torch.zeros(0, 200, 200), torch.zeros(0, 200, 2)).shape == (0, 200, 2)


@pytest.mark.parametrize("n", [5, 200])
def test_batches_are_inverted_on_several_threads(n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(2, 3, n, n, dtype=torch.float64, generator=generator) / n**0.5
    a = a + 3 * torch.eye(n, dtype=torch.float64)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inverted = inverse(a)
    finally:
        torch.set_num_threads(threads)
    assert torch.allclose(a @ inverted, torch.eye(n, dtype=torch.float64), atol=1e-10)


def test_the_inverse_of_a_singular_matrix_is_infinite() -> None:
    inverted = inverse(torch.stack([torch.eye(3), torch.zeros(3, 3)]))
    assert torch.equal(inverted[0], torch.eye(3))
    assert bool(inverted[1].isinf().all())
