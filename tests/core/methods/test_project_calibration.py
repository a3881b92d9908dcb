"""``project.unitary`` with second moments: nearest in the layer's outputs on the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from converting import Result, unitary
from safetensors.torch import save_file
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.manifold import random_point
from stiefel.projection.procrustes import procrustes
from stiefel.specs import parse_spec

ID = "art_01k0calibration"


def inputs(width: int, rows: int = 200) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -2, width)
    return (torch.randn(rows, width, generator=generator) @ mixing).double()


def convert(folder: Path, weights: dict[str, Tensor], moment: Tensor, **options: Any) -> Result:
    (folder / "input").mkdir(parents=True)
    save_file({"a.second_moment": moment}, folder / "input" / "calibration.safetensors")
    return unitary(folder, weights, calibration=ID, **options)


@pytest.mark.parametrize("shape", [(12, 12), (20, 12), (8, 12)])
@pytest.mark.parametrize("scale", ["none", "mean"])
def test_outputs_are_as_near_as_claimed_and_nearer_than_those_of_the_polar_factor(
    tmp_path: Path, shape: tuple[int, int], scale: str
) -> None:
    generator = torch.Generator().manual_seed(5)
    weights = {
        "a.weight": torch.randn(*shape, generator=generator),
        "b.weight": torch.randn(9, 9, generator=generator),
    }
    x, W = inputs(shape[1]), weights["a.weight"].double()
    aware = convert(tmp_path / "aware", weights, x.T @ x, scale=scale)
    plain = unitary(tmp_path / "plain", weights, scale=scale)
    claims = aware.claims["a.weight"]
    stored = aware.tensors()["a.weight"].double()
    error = float(torch.linalg.norm(x @ (W - stored).T) / torch.linalg.norm(x @ W.T))
    assert error == pytest.approx(claims["output_error"], rel=1e-5)
    assert claims["orthogonality_defect"] < 1e-5
    assert error < 0.99 * claims["polar_output_error"]
    exact = procrustes(W, x, scale=scale)  # type: ignore[arg-type]
    assert error == pytest.approx(exact.distance, rel=1e-5)
    assert ("optimal_output_error" in claims) == (shape[0] >= shape[1])
    if shape[0] >= shape[1]:
        assert error == pytest.approx(claims["optimal_output_error"], rel=1e-5)
    # No data on b: it is projected by its weights.
    assert torch.equal(aware.tensors()["b.weight"], plain.tensors()["b.weight"])


def test_the_errors_of_a_nearly_orthogonal_weight_keep_their_digits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    frame = random_point(24, 24, generator=generator, dtype=torch.float64)
    W = frame + 1e-10 * torch.randn(24, 24, generator=generator)
    x = inputs(24)
    claims = convert(tmp_path, {"a.weight": W.contiguous()}, x.T @ x).claims["a.weight"]
    assert claims["optimal_output_error"] == pytest.approx(claims["output_error"], rel=1e-3)
    assert claims["output_error"] <= claims["polar_output_error"] < 1e-8


def test_directions_without_data_follow_the_weights(tmp_path: Path) -> None:
    W = torch.randn(6, 6, generator=torch.Generator().manual_seed(6))
    x = torch.zeros(50, 6, dtype=torch.float64)
    x[:, 0] = 1.0
    result = convert(tmp_path, {"a.weight": W}, x.T @ x)
    assert result.claims["a.weight"]["orthogonality_defect"] < 1e-5


def test_a_moment_of_another_layer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\(12, 12\)") as caught:
        convert(tmp_path, {"a.weight": torch.ones(12, 12)}, torch.eye(7))
    assert caught.value.code == "calibration_width"


def test_a_zero_moment_is_refused(tmp_path: Path) -> None:
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(7))
    with pytest.raises(InvalidInputError, match="moment of the inputs is zero") as caught:
        convert(tmp_path, {"a.weight": weight}, torch.zeros(5, 5))
    assert caught.value.code == "empty_calibration"


@pytest.mark.parametrize("option", [{"algorithm": "uwpa"}, {"determinant": 1}])
def test_what_calibration_excludes(option: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="with calibration"):
        parse_spec({"method": "project.unitary", "input": "art_1", "calibration": ID, **option})
