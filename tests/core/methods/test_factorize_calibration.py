"""``factorize.low_rank`` with second moments of the layers' inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from converting import low_rank
from safetensors.torch import save_file
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.specs import parse_spec

ID = "art_01k0calibration"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "a.weight": torch.randn(20, 16, generator=generator),
        "b.weight": torch.randn(18, 14, generator=generator),
    }


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(16, 16, generator=generator) * torch.logspace(0, -3, 16)
    return (torch.randn(300, 16, generator=generator) @ mixing).double()


def convert(
    folder: Path,
    weights: dict[str, Tensor],
    moment: Tensor,
    more: dict[str, Tensor] | None = None,
    **options: Any,
) -> Any:
    (folder / "input").mkdir(parents=True)
    known = {"a.second_moment": moment, **(more or {})}
    save_file(known, folder / "input" / "calibration.safetensors")
    return low_rank(folder, weights, calibration=ID, **options)


@pytest.mark.parametrize("factors", ["balanced", "us_v"])
def test_output_error_is_as_claimed_and_below_that_of_the_plain_conversion(
    tmp_path: Path, weights: dict[str, Tensor], x: Tensor, factors: str
) -> None:
    rule = {"by": "rank", "value": 5}
    aware = convert(tmp_path / "aware", weights, x.T @ x, rule=rule, factors=factors)
    plain = low_rank(tmp_path / "plain", weights, rule=rule, factors=factors)
    W = weights["a.weight"].double()
    errors = []
    for result in (aware, plain):
        tensors = result.tensors()
        got = tensors["a.factor_out"].double() @ tensors["a.factor_in"].double()
        errors.append(float(torch.linalg.norm(x @ (W - got).T) / torch.linalg.norm(x @ W.T)))
    assert errors[0] == pytest.approx(aware.claims["a.factor_out"]["output_error"], rel=1e-4)
    assert errors[0] < 0.7 * errors[1]
    # No data on b: it is factored by its weights.
    assert torch.equal(aware.tensors()["b.factor_out"], plain.tensors()["b.factor_out"])
    assert "calibration.safetensors" not in {p.name for p in (tmp_path / "aware").glob("out*/*")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("output", ["factored", "merged"])
@pytest.mark.parametrize("layout", ["usual", "transposed", "biased"])
def test_output_error_is_that_of_the_values_as_they_are_stored(
    tmp_path: Path, dtype: torch.dtype, output: str, layout: str
) -> None:
    generator = torch.Generator().manual_seed(7)
    left, right = torch.randn(48, 8, generator=generator), torch.randn(8, 64, generator=generator)
    W = (left @ right + 1e-3 * torch.randn(48, 64, generator=generator)).to(dtype)
    x = torch.randn(300, 64, generator=generator).double() + 0.5
    weights, more = {"a.weight": W}, dict[str, Tensor]()
    if layout == "transposed":
        weights, more = {"a.weight": W.mT.contiguous()}, {"a.transposed": torch.ones(())}
    if layout == "biased":
        weights, more = {**weights, "a.bias": torch.zeros(48)}, mean_of(x)
    rule = {"by": "rank", "value": 16}
    result = convert(tmp_path, weights, x.T @ x, more, rule=rule, output=output)
    tensors = {name: value.double() for name, value in result.tensors().items()}
    merged = output == "merged"
    got = tensors["a.weight"] if merged else tensors["a.factor_out"] @ tensors["a.factor_in"]
    change = W.double() - (got.mT if layout == "transposed" else got)
    seen = x - x.mean(0) if layout == "biased" else x
    error = float((seen @ change.mT).norm() / (x @ W.double().mT).norm())
    claimed = result.claims["a.weight" if merged else "a.factor_out"]["output_error"]
    assert claimed == pytest.approx(error, rel=1e-6)


def test_a_weight_that_is_stored_transposed_is_converted_as_the_layer_uses_it(
    tmp_path: Path, weights: dict[str, Tensor], x: Tensor
) -> None:
    options: dict[str, Any] = {"rule": {"by": "rank", "value": 5}}
    turned = {name: weight.mT.contiguous() for name, weight in weights.items()}
    mark = {"a.transposed": torch.ones(())}
    usual = convert(tmp_path / "usual", weights, x.T @ x, **options).tensors()
    other = convert(tmp_path / "other", turned, x.T @ x, mark, **options).tensors()
    product, stored = (t["a.factor_out"] @ t["a.factor_in"] for t in (usual, other))
    assert torch.allclose(stored.mT, product, atol=1e-5)


def test_tolerance_judges_the_output(tmp_path: Path, weights: dict[str, Tensor], x: Tensor) -> None:
    rule = {"by": "tolerance", "value": 0.05}
    result = convert(tmp_path, weights, x.T @ x, rule=rule, break_even=False)
    claims = result.claims["a.factor_out"]
    assert claims["output_error"] <= 0.05
    assert claims["rank"] < result.claims["b.factor_out"]["rank"]


def test_a_moment_of_another_layer_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], x: Tensor
) -> None:
    with pytest.raises(InvalidInputError, match=r"\(16, 16\)") as caught:
        convert(tmp_path, weights, torch.eye(7), rule={"by": "rank", "value": 5})
    assert caught.value.code == "calibration_width"


def mean_of(x: Tensor) -> dict[str, Tensor]:
    count = torch.tensor(float(len(x)), dtype=torch.float64)
    return {"a.first_moment": x.sum(0), "a.count": count}


@pytest.mark.parametrize("output", ["factored", "merged"])
def test_the_bias_takes_up_the_change_of_the_mean(
    tmp_path: Path, weights: dict[str, Tensor], x: Tensor, output: str
) -> None:
    x = x + 2.0
    generator = torch.Generator().manual_seed(4)
    biased = weights | {"a.bias": torch.randn(20, generator=generator), "b.bias": torch.ones(18)}
    options = {"rule": {"by": "rank", "value": 5}, "output": output}
    moment, mean = x.T @ x, mean_of(x)
    corrected = convert(tmp_path / "with", biased, moment, mean, **options)
    plain = convert(tmp_path / "without", biased, moment, mean, **options, correct_bias=False)
    wanted = x @ biased["a.weight"].double().T + biased["a.bias"].double()
    errors = []
    for result in (corrected, plain):
        tensors = {name: value.double() for name, value in result.tensors().items()}
        got = tensors.get("a.weight")
        got = tensors["a.factor_out"] @ tensors["a.factor_in"] if got is None else got
        error = wanted - (x @ got.T + tensors["a.bias"])
        errors.append(float(error.norm() / (wanted - biased["a.bias"].double()).norm()))
    claims = corrected.claims["a.weight" if output == "merged" else "a.factor_out"]
    assert errors[0] == pytest.approx(claims["output_error"], rel=1e-3)
    assert errors[0] < 0.9 * errors[1]
    assert torch.equal(plain.tensors()["a.bias"], biased["a.bias"])
    assert torch.equal(corrected.tensors()["b.bias"], biased["b.bias"])
    assert corrected.skipped["b.bias"] == "mean_unknown"
    row = next(r for r in corrected.json("report.json")["tensors"] if r["name"] == "a.bias")
    assert row["outputs"][0]["role"] == "corrected"
    assert row["after"]["bias_change"] > 0


def test_a_bias_stays_where_its_weight_does_or_where_it_is_excluded(
    tmp_path: Path, weights: dict[str, Tensor], x: Tensor
) -> None:
    biased = weights | {"a.bias": torch.ones(20)}
    whole = {"rule": {"by": "tolerance", "value": 0.0}}
    kept = convert(tmp_path / "whole", biased, x.T @ x, mean_of(x), **whole, include=["a.*"])
    assert kept.skipped["a.bias"] == "weight_unchanged"
    left = {"rule": {"by": "rank", "value": 4}, "exclude": ["a.bias"]}
    excluded = convert(tmp_path / "excluded", biased, x.T @ x, mean_of(x), **left)
    assert excluded.skipped["a.bias"] == "excluded"
    for result in (kept, excluded):
        assert torch.equal(result.tensors()["a.bias"], biased["a.bias"])


def test_a_count_of_nothing_is_refused(
    tmp_path: Path, weights: dict[str, Tensor], x: Tensor
) -> None:
    nothing = mean_of(x) | {"a.count": torch.zeros((), dtype=torch.float64)}
    with pytest.raises(InvalidInputError, match=r"'a\.count' is 0"):
        convert(tmp_path, weights, x.T @ x, nothing, rule={"by": "rank", "value": 5})


def test_calibration_and_randomised_engine_exclude_each_other() -> None:
    with pytest.raises(InvalidInputError, match="randomised"):
        parse_spec(
            {
                "method": "factorize.low_rank",
                "input": "art_01k0example",
                "calibration": ID,
                "engine": "randomised",
                "rule": {"by": "rank", "value": 4},
            }
        )
