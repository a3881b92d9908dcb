from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stiefel.errors import InvalidInputError
from stiefel.linalg.truncated_svd import singular_values, thin_svd, truncated_svd
from stiefel.projection.low_rank import factorize, merge
from stiefel.projection.rank_rules import (
    rank_for_energy,
    rank_for_ratio,
    rank_for_tolerance,
    ranks_for_budget,
)

SHAPES = [(30, 30), (50, 12), (12, 50), (1, 7), (7, 1)]
DTYPES = [torch.float32, torch.float64, torch.complex64]


def normal(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_spectrum(sigma: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    U = torch.linalg.qr(normal(rows, rows, seed=1)).Q[:, : len(sigma)]
    V = torch.linalg.qr(normal(columns, columns, seed=2)).Q[:, : len(sigma)]
    return (U * sigma) @ V.T


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("engine", ["auto", "full", "gram"])
def test_the_thin_svd_reproduces_the_matrix(
    shape: tuple[int, int], dtype: torch.dtype, engine: Any
) -> None:
    x = normal(*shape, dtype=dtype)
    U, sigma, Vh = thin_svd(x, engine=engine)
    double = x.to(U.dtype)
    assert torch.allclose((U * sigma) @ Vh, double, atol=1e-11)
    assert torch.allclose(sigma, torch.linalg.svdvals(double), rtol=1e-9)
    eye = torch.eye(min(shape), dtype=U.dtype)
    assert torch.allclose(U.mH @ U, eye, atol=1e-8)
    assert torch.allclose(Vh @ Vh.mH, eye, atol=1e-8)


def test_an_ill_conditioned_tall_matrix_falls_back_to_the_full_svd() -> None:
    x = with_spectrum(10.0 ** -torch.arange(12, dtype=torch.float64), 50, 12)
    svd = thin_svd(x)
    assert torch.allclose(svd.U.mH @ svd.U, torch.eye(12, dtype=x.dtype), atol=1e-12)
    assert float(svd.sigma[-1]) == pytest.approx(1e-11, rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values(shape: tuple[int, int]) -> None:
    x = normal(*shape)
    assert torch.allclose(singular_values(x), torch.linalg.svdvals(x), rtol=1e-8)


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
def test_the_randomised_svd_is_near_the_best_and_repeats_itself(shape: tuple[int, int]) -> None:
    sigma = torch.arange(1, 201, dtype=torch.float64) ** -0.5
    x = with_spectrum(sigma, *shape)
    first, second = (
        truncated_svd(x, 16, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    error = torch.linalg.norm(x - (first.U * first.sigma) @ first.Vh)
    assert error <= 1.01 * torch.linalg.norm(sigma[16:])


def test_a_wide_sketch_becomes_the_whole_svd() -> None:
    x = normal(40, 30)
    svd = truncated_svd(x, 20, generator=torch.Generator())
    assert torch.allclose(svd.sigma, torch.linalg.svdvals(x)[:20])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factors", ["balanced", "us_v"])
def test_the_error_is_the_eckart_young_bound(
    shape: tuple[int, int], dtype: torch.dtype, factors: Any
) -> None:
    x = normal(*shape, dtype=dtype)
    for rank in {1, (min(shape) + 1) // 2}:
        result = factorize(x, rank, factors=factors)
        assert result.factor_out.shape == (shape[0], rank)
        assert result.factor_in.shape == (rank, shape[1])
        assert result.factor_out.dtype == dtype
        assert result.optimal_error is not None
        assert result.relative_error == pytest.approx(result.optimal_error, rel=1e-5, abs=1e-6)
        error = torch.linalg.norm(x - merge(result.factor_out, result.factor_in))
        assert float(error / torch.linalg.norm(x)) == pytest.approx(
            result.relative_error, rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_double_precision_is_not_squared(dtype: torch.dtype) -> None:
    sigma = 10.0 ** -torch.arange(12, dtype=torch.float64)
    result = factorize(with_spectrum(sigma, 20, 12).to(dtype), 10)
    best = float(torch.linalg.norm(sigma[10:]) / torch.linalg.norm(sigma))
    assert result.optimal_error == pytest.approx(best, rel=1e-4)
    assert result.relative_error == pytest.approx(best, rel=1e-4)


def test_full_rank_is_the_identity() -> None:
    x = normal(20, 12)
    result = factorize(x, 12)
    assert torch.allclose(merge(result.factor_out, result.factor_in), x, atol=1e-12)
    assert result.retained_energy == pytest.approx(1)
    assert result.optimal_error == 0


def test_more_rank_than_the_matrix_has_stays_finite() -> None:
    x = normal(20, 3) @ normal(3, 20, seed=1)
    result = factorize(x, 10)
    assert bool(torch.isfinite(result.factor_out).all())
    assert torch.allclose(merge(result.factor_out, result.factor_in), x, atol=1e-6)


def test_a_zero_matrix_has_zero_factors() -> None:
    result = factorize(torch.zeros(6, 4), 2)
    assert not bool(result.factor_out.any())
    assert result.relative_error == 0
    assert result.retained_energy == 1


@pytest.mark.parametrize("rank", [0, 13, -1])
@pytest.mark.parametrize("engine", ["auto", "randomised"])
def test_a_rank_out_of_range_is_refused(rank: int, engine: Any) -> None:
    with pytest.raises(InvalidInputError) as caught:
        factorize(normal(20, 12), rank, engine=engine)
    assert caught.value.code == "rank_out_of_range"


@pytest.mark.parametrize("x", [torch.full((3, 3), float("nan")), torch.ones(3)])
def test_what_is_no_finite_matrix_is_refused(x: torch.Tensor) -> None:
    with pytest.raises(InvalidInputError):
        factorize(x, 1)


def test_a_rule_may_choose_the_rank() -> None:
    x = with_spectrum(torch.tensor([4.0, 2.0, 1.0, 0.5]).double(), 8, 4)
    assert factorize(x, lambda sigma: rank_for_ratio(sigma, 0.2)).rank == 3


SPECTRA = st.lists(st.floats(0, 100), min_size=1, max_size=12).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(SPECTRA, st.floats(0, 0.999))
def test_a_tolerance_keeps_the_least_rank_that_satisfies_it(
    sigma: torch.Tensor, tolerance: float
) -> None:
    rank = rank_for_tolerance(sigma, tolerance)
    bound = tolerance * float(torch.linalg.norm(sigma))
    slack = 1e-6 * float(torch.linalg.norm(sigma))
    assert float(torch.linalg.norm(sigma[rank:])) <= bound + slack
    if rank:
        assert float(torch.linalg.norm(sigma[rank - 1 :])) >= bound * (1 - 1e-9)


@pytest.mark.parametrize("tolerance", [0.1, 0.37, 0.9])
def test_energy_and_tolerance_agree(tolerance: float) -> None:
    sigma = normal(40).abs().sort(descending=True).values
    assert rank_for_energy(sigma, 1 - tolerance**2) == rank_for_tolerance(sigma, tolerance)


def test_the_ends_of_the_rules() -> None:
    sigma = torch.tensor([2.0, 1.0, 1e-9], dtype=torch.float64)
    assert rank_for_tolerance(sigma, 0) == 3
    assert rank_for_energy(sigma, 1) == 3
    assert rank_for_ratio(sigma, 1) == 1
    assert rank_for_ratio(torch.zeros(3), 0.5) == 0
    assert rank_for_energy(torch.zeros(3), 0.5) == 0


def test_the_greedy_budget_is_the_best_of_all_choices_of_its_cost() -> None:
    spectra = {
        "a": [5.0, 3.0, 2.0, 1.0],
        "b": [4.0, 3.9, 3.8, 0.1],
        "c": [9.0, 0.5, 0.4, 0.3],
    }
    shapes = dict.fromkeys(spectra, (20, 20))
    ranks = ranks_for_budget(spectra, shapes, 40 * 7)
    assert sum(ranks.values()) == 7

    def retained(choice: tuple[int, ...]) -> float:
        return sum(
            sum(v * v for v in values[:rank]) / sum(v * v for v in values)
            for values, rank in zip(spectra.values(), choice, strict=True)
        )

    choices = [c for c in itertools.product(range(1, 5), repeat=3) if sum(c) == 7]
    assert retained(tuple(ranks.values())) == pytest.approx(max(map(retained, choices)))


@pytest.mark.parametrize("budget", range(180, 460, 20))
def test_the_greedy_budget_of_flat_spectra_is_the_best_without_whole_matrices(budget: int) -> None:
    """Up to the last rank; a whole matrix beside a thin one may retain more."""
    shapes = {"a": (16, 16), "b": (16, 16), "c": (8, 24)}
    shares = {
        name: torch.linalg.svdvals(normal(*shape, seed=seed)).square()
        for seed, (name, shape) in enumerate(shapes.items())
    }
    shares = {name: share / share.sum() for name, share in shares.items()}
    spectra = {name: share.sqrt().tolist() for name, share in shares.items()}
    ranks = ranks_for_budget(spectra, shapes, budget)
    assert stored(ranks, shapes) <= budget

    def retained(choice: dict[str, int]) -> float:
        return sum(float(shares[name][:rank].sum()) for name, rank in choice.items())

    choices = [
        dict(zip(shapes, choice, strict=True))
        for choice in itertools.product(range(1, 8), range(1, 8), range(1, 6))
    ]
    best = max(retained(c) for c in choices if stored(c, shapes) <= budget)
    last = max(float(share[1]) for share in shares.values())
    assert retained(ranks) >= best - last


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(2, 30), st.integers(2, 30)), min_size=1, max_size=5),
    st.integers(0, 5000),
)
def test_a_budget_is_never_exceeded(sizes: list[tuple[int, int]], budget: int) -> None:
    shapes = {str(i): shape for i, shape in enumerate(sizes)}
    spectra = {
        name: normal(min(shape), seed=int(name)).abs().sort(descending=True).values.tolist()
        for name, shape in shapes.items()
    }
    ranks = ranks_for_budget(spectra, shapes, budget)
    assert stored(ranks, shapes) <= max(budget, stored(dict.fromkeys(shapes, 1), shapes))
    assert all(rank >= 1 for rank in ranks.values())


def stored(ranks: dict[str, int], shapes: dict[str, tuple[int, int]]) -> int:
    """Parameters when a matrix that factors would not shrink is kept as it is."""
    return sum(min(r * sum(shapes[n]), math.prod(shapes[n])) for n, r in ranks.items())


def test_a_budget_that_is_the_whole_model_cuts_nothing() -> None:
    shapes = {"a": (20, 20), "b": (30, 7), "c": (1, 5)}
    spectra = {
        name: normal(min(shape)).abs().sort(descending=True).values.tolist()
        for name, shape in shapes.items()
    }
    whole = sum(map(math.prod, shapes.values()))
    full = {name: min(shape) for name, shape in shapes.items()}
    assert ranks_for_budget(spectra, shapes, whole) == full
    less = ranks_for_budget(spectra, shapes, whole - 1)
    assert less != full
    assert stored(less, shapes) < whole
    bounded = ranks_for_budget(spectra, shapes, whole, most=4)
    assert max(bounded.values()) == 4


@pytest.mark.parametrize(("least", "step"), [(1, 8), (5, 1), (3, 4)])
def test_rounded_ranks_stay_within_the_budget(least: int, step: int) -> None:
    spectra = {name: [2.0**-i for i in range(64)] for name in "abcd"}
    ranks = ranks_for_budget(spectra, dict.fromkeys("abcd", (64, 64)), 6000, least=least, step=step)
    assert sum(rank * 128 for rank in ranks.values()) <= 6000
    assert all(rank >= least and rank % step == 0 for rank in ranks.values())
