from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import Result, low_rank, small_checkpoint
from torch.nn.functional import conv2d


def decaying(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    U = torch.linalg.qr(torch.randn(rows, rows, generator=generator, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(columns, columns, generator=generator, dtype=torch.float64)).Q
    count = min(rows, columns)
    sigma = 0.8 ** torch.arange(count, dtype=torch.float64)
    return ((U[:, :count] * sigma) @ V[:, :count].T).float()


def product(result: Result, stem: str = "a") -> torch.Tensor:
    tensors = result.tensors()
    out, into = tensors[f"{stem}.factor_out"].double(), tensors[f"{stem}.factor_in"].double()
    return out.flatten(1) @ into.flatten(1)


def by(rule: str, value: float) -> dict[str, Any]:
    return {"by": rule, "value": value}


@pytest.mark.parametrize("shape", [(40, 40), (60, 20), (20, 60)])
@pytest.mark.parametrize("engine", ["auto", "full", "gram"])
def test_the_error_is_the_eckart_young_bound(
    tmp_path: Path, shape: tuple[int, int], engine: str
) -> None:
    x = decaying(*shape)
    result = low_rank(tmp_path, {"a.weight": x}, rule=by("rank", 5), engine=engine)
    sigma = torch.linalg.svdvals(x.double())
    bound = float(torch.linalg.norm(sigma[5:]) / torch.linalg.norm(sigma))
    measured = float(torch.linalg.norm(product(result) - x) / torch.linalg.norm(x))
    claims = result.claims["a.factor_out"]
    assert measured == pytest.approx(bound, rel=1e-5)
    assert claims["relative_error"] == pytest.approx(measured, rel=1e-6)
    assert claims["optimal_error"] == pytest.approx(bound, rel=1e-6)
    assert claims["retained_energy"] == pytest.approx(1 - bound**2, rel=1e-6)
    assert claims["rank"] == 5


SIGMA = 0.8 ** torch.arange(20, dtype=torch.float64)


def tail(rank: int) -> float:
    return float(torch.linalg.norm(SIGMA[rank:]) / torch.linalg.norm(SIGMA))


@pytest.mark.parametrize(
    ("rule", "rank"),
    [
        (by("rank", 3), 3),
        (by("energy", 0.9), math.ceil(math.log(0.1) / math.log(0.64))),
        (by("tolerance", 0.25), next(r for r in range(20) if tail(r) <= 0.25)),
        (by("ratio", 0.5), 4),
        (by("keep", 0.5), 7),
        (by("budget", 400), 5),
        (by("share", 1 / 3), 5),
    ],
)
def test_every_rule_keeps_the_rank_it_promises(
    tmp_path: Path, rule: dict[str, Any], rank: int
) -> None:
    result = low_rank(tmp_path, {"a.weight": decaying(60, 20)}, rule=rule)
    assert result.claims["a.factor_out"]["rank"] == rank
    assert result.tensors()["a.factor_in"].shape == (rank, 20)


def test_a_budget_is_spent_where_energy_is_and_never_exceeded(tmp_path: Path) -> None:
    flat = torch.linalg.qr(torch.randn(40, 40, generator=torch.Generator().manual_seed(2))).Q
    tensors = {"steep.weight": decaying(40, 40), "flat.weight": flat.contiguous()}
    result = low_rank(tmp_path, tensors, rule=by("budget", 660))
    spent = sum(x.numel() for x in result.tensors().values())
    assert 660 - 80 < spent <= 660
    assert result.claims["steep.factor_out"]["rank"] > result.claims["flat.factor_out"]["rank"]


def test_a_matrix_at_its_break_even_stays_as_it_is_and_says_so(tmp_path: Path) -> None:
    tensors = {"a.weight": decaying(40, 40), "flat.weight": torch.eye(30)}
    result = low_rank(tmp_path, tensors, rule=by("energy", 0.9))
    assert result.skipped == {"flat.weight": "break_even"}
    assert torch.equal(result.tensors()["flat.weight"], torch.eye(30))
    forced = low_rank(tmp_path / "b", tensors, rule=by("energy", 0.9), break_even=False)
    assert forced.claims["flat.factor_out"]["rank"] == 27


def test_a_zero_matrix_stays_as_it_is_and_says_so(tmp_path: Path) -> None:
    tensors = {"a.weight": decaying(40, 40), "zero.weight": torch.zeros(30, 30)}
    result = low_rank(tmp_path, tensors, rule=by("energy", 0.9))
    assert result.skipped == {"zero.weight": "zero_matrix"}


def test_bounds_and_multiples(tmp_path: Path) -> None:
    x = {"a.weight": decaying(64, 64)}
    rule = by("energy", 0.9)  # rank 6
    assert low_rank(tmp_path / "a", x, rule=rule, multiple_of=8).claims["a.factor_in"]["rank"] == 8
    assert low_rank(tmp_path / "b", x, rule=rule, max_rank=4).claims["a.factor_in"]["rank"] == 4
    assert low_rank(tmp_path / "c", x, rule=rule, min_rank=20).claims["a.factor_in"]["rank"] == 20
    # Rounding up to 32 would cross the break-even.
    assert low_rank(tmp_path / "d", x, rule=rule, multiple_of=32).claims["a.factor_in"]["rank"] == 6


def test_balanced_and_us_v_factors(tmp_path: Path) -> None:
    x = {"a.weight": decaying(40, 40)}
    balanced = low_rank(tmp_path / "a", x, rule=by("rank", 6)).tensors()
    left, right = balanced["a.factor_out"], balanced["a.factor_in"]
    assert torch.allclose(left.T @ left, right @ right.T, atol=1e-6)
    us_v = low_rank(tmp_path / "b", x, rule=by("rank", 6), factors="us_v").tensors()
    assert torch.allclose(us_v["a.factor_in"] @ us_v["a.factor_in"].T, torch.eye(6), atol=1e-6)


def test_merged_output_keeps_names_and_shapes(tmp_path: Path) -> None:
    before = small_checkpoint()
    result = low_rank(tmp_path, before, rule=by("rank", 4), output="merged")
    after = result.tensors()
    assert {n: (x.shape, x.dtype) for n, x in after.items()} == {
        n: (x.shape, x.dtype) for n, x in before.items()
    }
    kernel = after["kernel.weight"].flatten(1)
    assert int(torch.linalg.matrix_rank(kernel)) == 4
    claims = result.claims["kernel.weight"]
    assert claims["relative_error"] == pytest.approx(claims["optimal_error"], rel=1e-5)


def test_two_convolutions_with_the_factors_are_the_merged_kernel(tmp_path: Path) -> None:
    before = {"c.weight": small_checkpoint()["kernel.weight"]}
    factored = low_rank(tmp_path / "a", before, rule=by("rank", 4)).tensors()
    merged = low_rank(tmp_path / "b", before, rule=by("rank", 4), output="merged").tensors()
    x = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(5))
    for options in ({}, {"stride": 2, "padding": 1}, {"dilation": 2}):
        inner = conv2d(x, factored["c.factor_in"], **options)
        two = conv2d(inner, factored["c.factor_out"])
        assert torch.allclose(two, conv2d(x, merged["c.weight"], **options), atol=1e-5)


def test_complex_and_half_matrices(tmp_path: Path) -> None:
    before = {n: small_checkpoint()[n] for n in ("complex.weight", "half.weight")}
    result = low_rank(tmp_path, before, rule=by("rank", 3))
    tensors = result.tensors()
    assert tensors["complex.factor_out"].dtype == torch.complex64
    assert tensors["half.factor_in"].dtype == torch.bfloat16
    claims = result.claims["complex.factor_out"]
    assert claims["relative_error"] == pytest.approx(claims["optimal_error"], rel=1e-5)
    assert result.claims["half.factor_in"]["relative_error"] < 1


def test_the_randomised_engine_is_close_and_claims_no_optimum(tmp_path: Path) -> None:
    x = decaying(200, 100)
    result = low_rank(tmp_path, {"a.weight": x}, rule=by("rank", 8), engine="randomised")
    claims = result.claims["a.factor_out"]
    assert "optimal_error" not in claims
    sigma = torch.linalg.svdvals(x.double())
    bound = float(torch.linalg.norm(sigma[8:]) / torch.linalg.norm(sigma))
    assert bound <= claims["relative_error"] <= 1.007 * bound


def test_the_factored_file_is_smaller(tmp_path: Path) -> None:
    before = {"a.weight": decaying(80, 80), "bias": torch.ones(80)}
    result = low_rank(tmp_path, before, rule=by("energy", 0.99))
    assert result.outcome.metrics["bytes_after"] < result.outcome.metrics["bytes_before"] / 2
