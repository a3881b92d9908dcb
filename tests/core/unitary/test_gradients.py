"""Rank-k factors: exact on rank-k inputs at any scale, near the best rank otherwise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.unitary.gradients import (
    Gradient,
    column_sampling,
    compress,
    lsi,
    range_finder,
    scaled,
    squared_norm,
    truncate,
)
from stiefel.unitary.rank_k_update import Products

METHODS = ["range", "lsi", "columns"]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def error(G: Tensor, gradient: Gradient) -> float:
    approximation = gradient.a @ gradient.b.mH
    return float(
        torch.linalg.matrix_norm(G - approximation).max() / torch.linalg.matrix_norm(G).max()
    )


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5, 1e-12, 1e-25])
def test_rank_k_input_is_reproduced_at_any_scale(
    draw: Any, method: Any, dtype: torch.dtype, scale: float
) -> None:
    """Oracle 15: the authors lose 52 % at 1e-5."""
    a, b = draw.step(40, 30, 4, 2, size=1.0, dtype=dtype)
    G = (a @ b.mH) * scale
    gradient = compress(G, 4, approximation=method, generator=generator())
    assert error(G / scale, Gradient(gradient.a / scale, gradient.b)) < 1e-5 or (
        method == "columns" and error(G / scale, Gradient(gradient.a, gradient.b / scale)) < 1e-5
    )


@pytest.mark.parametrize("method", METHODS)
def test_full_rank_input_is_reproduced_at_full_rank(draw: Any, method: Any) -> None:
    G = draw.normal(12, 12)
    assert error(G, compress(G, 12, approximation=method, generator=generator())) < 1e-12


def test_approximations_come_near_the_best_rank(draw: Any) -> None:
    U, V = draw.frame(60, 60), draw.frame(60, 60)
    sigma = 0.7 ** torch.arange(60, dtype=torch.float64)
    G = U @ torch.diag(sigma) @ V.mT
    best = float(sigma[4:].norm() / sigma.norm())
    assert error(G, range_finder(G, 4, generator=generator())) < 1.05 * best
    assert error(G, lsi(G, 4, generator=generator())) < 3 * best
    few = error(G, column_sampling(G, 4, generator=generator(), samples=4))
    many = error(G, column_sampling(G, 4, generator=generator(), samples=40))
    # More samples help, because the leading directions are kept: the authors keep the last.
    assert many < few
    assert many < 1.3 * best


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_gradient_is_a_zero_step(method: Any) -> None:
    gradient = compress(torch.zeros(2, 9, 9), 2, approximation=method, generator=generator())
    assert torch.equal(gradient.a @ gradient.b.mH, torch.zeros(2, 9, 9))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_factors_know_their_norm_and_truncate_without_forming_the_gradient(
    draw: Any, dtype: torch.dtype
) -> None:
    gradient = Gradient(draw.normal(30, 8, dtype=dtype), draw.normal(20, 8, dtype=dtype))
    G = gradient.a @ gradient.b.mH
    assert float(squared_norm(gradient)) == pytest.approx(float(G.norm() ** 2))
    left, sigma, right = torch.linalg.svd(G)
    best = (left[:, :3] * sigma[:3]) @ right[:3]
    small = truncate(gradient, 3)
    assert torch.allclose(small.a @ small.b.mH, best)
    assert truncate(gradient, 8) is gradient


def test_scaling_keeps_the_products_true(draw: Any) -> None:
    W, a, b = draw.frame(8, 8), draw.normal(8, 2), draw.normal(8, 2)
    doubled = scaled(Gradient(a, b, Products(W @ b, W.mT @ a)), 2.0)
    assert doubled.products is not None
    assert torch.allclose(doubled.products.Wa, W.mT @ doubled.a)
    assert torch.allclose(doubled.products.Wb, W @ doubled.b)


def test_impossible_ranks_and_names_are_refused() -> None:
    G = torch.zeros(6, 4)
    with pytest.raises(InvalidInputError, match="rank 5"):
        compress(G, 5, approximation="range", generator=generator())
    with pytest.raises(InvalidInputError, match="unknown approximation"):
        compress(G, 2, approximation="svd", generator=generator())  # type: ignore[arg-type]
