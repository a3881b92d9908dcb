from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from converting import Job, as_matrix, polar_of, small_checkpoint, unitary

from stiefel.errors import InvalidInputError, StopRequested

CONVERTED = {name for name in small_checkpoint() if name.endswith(".weight")} - {"tiny.weight"}


def defect(x: torch.Tensor) -> float:
    matrix = as_matrix(x)
    return float(torch.linalg.norm(matrix.mH @ matrix - torch.eye(matrix.shape[1])))


def test_every_kind_of_matrix_becomes_the_nearest_unitary_one(tmp_path: Path) -> None:
    before = small_checkpoint()
    after = unitary(tmp_path, before).tensors()
    assert after.keys() == before.keys()
    for name, x in before.items():
        assert after[name].dtype == x.dtype
        assert after[name].shape == x.shape
        if name not in CONVERTED:
            assert torch.equal(
                after[name].flatten().view(torch.uint8), x.flatten().view(torch.uint8)
            ), name
            continue
        eps = torch.finfo(x.dtype).eps
        optimum = polar_of(x)
        distance = torch.linalg.norm(as_matrix(after[name]) - optimum)
        assert distance <= eps * math.sqrt(optimum.shape[1]), name
        assert defect(after[name]) <= 8 * eps * math.sqrt(optimum.shape[1]), name


def test_claims_are_what_the_stored_values_show(tmp_path: Path) -> None:
    before = small_checkpoint()
    result = unitary(tmp_path, before)
    after = result.tensors()
    for name in CONVERTED:
        stored, source, optimum = (
            as_matrix(after[name]),
            as_matrix(before[name]),
            polar_of(before[name]),
        )
        expected = {
            "orthogonality_defect": defect(after[name]),
            "distance_to_input": float(torch.linalg.norm(stored - source)),
            "distance_to_optimum": float(torch.linalg.norm(stored - optimum)),
            "optimum_distance_to_input": float(torch.linalg.norm(optimum - source)),
        }
        assert result.claims[name] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_the_optimum_is_never_undercut(tmp_path: Path) -> None:
    for claims in unitary(tmp_path, small_checkpoint()).claims.values():
        if claims:
            slack = claims["distance_to_optimum"]
            assert claims["distance_to_input"] >= claims["optimum_distance_to_input"] - slack


def test_double_precision_is_certified_to_its_digits(tmp_path: Path) -> None:
    """On a tall matrix of condition 977, whose Gram matrix has nearly a million."""
    generator = torch.Generator().manual_seed(4)
    left, right = (
        torch.linalg.qr(torch.randn(n, 16, generator=generator, dtype=torch.float64)).Q
        for n in (40, 16)
    )
    x = left * torch.logspace(0, -2.99, 16, dtype=torch.float64) @ right.mT
    result = unitary(tmp_path, {"w": x, "wide": x.mT.contiguous()})
    for name, claims in result.claims.items():
        distance = torch.linalg.norm(as_matrix(result.tensors()[name]) - left @ right.mT)
        # The factor of a rounded matrix is known to about eps times its condition.
        assert float(distance) < 1e-12
        assert claims["distance_to_optimum"] < 1e-12
        assert claims["distance_to_input"] >= claims["optimum_distance_to_input"] - 1e-14


def test_determinant_plus_one_costs_four_least_singular_values(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 9, generator=generator, dtype=torch.float64)
    x = x if torch.linalg.det(x) < 0 else -x
    free = unitary(tmp_path / "free", {"w": x, "tall": x[:, :4].contiguous()})
    turned = unitary(tmp_path / "turned", {"w": x, "tall": x[:, :4].contiguous()}, determinant=1)
    assert float(torch.linalg.det(free.tensors()["w"])) == pytest.approx(-1)
    assert float(torch.linalg.det(turned.tensors()["w"])) == pytest.approx(1)
    least = float(torch.linalg.svdvals(x)[-1])
    loss, free_loss = (r.claims["w"]["optimum_distance_to_input"] ** 2 for r in (turned, free))
    assert loss - free_loss == pytest.approx(4 * least)
    assert torch.equal(free.tensors()["tall"], turned.tensors()["tall"])


def test_scale_mean_keeps_the_gain_and_certifies_it(tmp_path: Path) -> None:
    x = 5 * small_checkpoint()["tall.weight"]
    result = unitary(tmp_path, {"w": x}, scale="mean")
    claims = result.claims["w"]
    gain = float(torch.linalg.svdvals(x.double()).mean())
    assert claims["gain"] == pytest.approx(gain)
    assert claims["orthogonality_defect"] < 1e-5
    assert torch.allclose(result.tensors()["w"].double(), gain * polar_of(x), atol=1e-5)
    assert (
        claims["distance_to_input"]
        < unitary(tmp_path / "b", {"w": x}).claims["w"]["distance_to_input"]
    )


def test_half_precision_can_be_stored_as_float32(tmp_path: Path) -> None:
    x = small_checkpoint()["half.weight"]
    rounded = unitary(tmp_path / "a", {"w": x})
    widened = unitary(tmp_path / "b", {"w": x}, output_dtype="float32")
    assert rounded.tensors()["w"].dtype == torch.bfloat16
    assert widened.tensors()["w"].dtype == torch.float32
    assert rounded.claims["w"]["orthogonality_defect"] > 1e-3
    assert widened.claims["w"]["orthogonality_defect"] < 1e-6


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_the_factor_does_not_depend_on_the_scale(tmp_path: Path, factor: float) -> None:
    x = small_checkpoint()["square.weight"]
    after = unitary(tmp_path, {"w": x * factor}).tensors()["w"]
    assert torch.allclose(after.double(), polar_of(x), atol=1e-5)


@pytest.mark.parametrize("name", ["square.weight", "wide.weight", "complex.weight"])
def test_uwpa_comes_close_to_the_optimum_and_says_how_close(tmp_path: Path, name: str) -> None:
    x = small_checkpoint()[name]
    if name == "square.weight" and float(torch.linalg.det(x)) < 0:
        x[0] *= -1  # the exponential of a real skew matrix has determinant +1
    result = unitary(tmp_path, {"w": x}, algorithm="uwpa", scale="mean")
    claims = result.claims["w"]
    optimum = claims["optimum_distance_to_input"]
    assert claims["orthogonality_defect"] < 1e-5
    assert optimum - 1e-5 <= claims["distance_to_input"] <= 1.01 * optimum
    assert claims["distance_to_optimum"] > 0
    after = result.json("report.json")["tensors"][0]["after"]
    assert after["iterations"] > 1
    assert after["determinant_gap"] == 0
    assert after["closed_form_loss"] <= after["fitted_loss"] * (1 + 1e-6)
    assert after["fitted_loss"] <= 1.01 * after["closed_form_loss"]


def test_uwpa_reports_the_loss_of_every_iteration_and_what_the_determinant_costs(
    tmp_path: Path,
) -> None:
    x = small_checkpoint()["square.weight"]
    x[0] *= -torch.linalg.det(x).sign()
    spec = {"method": "project.unitary", "input": "a", "algorithm": "uwpa", "scale": "mean"}
    job = Job(tmp_path, spec).stage({"w": x})
    after = job.finish().json("report.json")["tensors"][0]["after"]
    losses = [point["fit_loss/w"] for _, point in job.run.points if "fit_loss/w" in point]
    assert len(losses) == after["iterations"]
    assert min(losses) == pytest.approx(after["fitted_loss"])
    reachable = after["closed_form_loss"] + after["determinant_gap"]
    assert reachable * (1 - 1e-6) <= after["fitted_loss"] <= 1.01 * reachable
    assert after["determinant_gap"] > 0


def test_uwpa_stops_between_two_iterations(tmp_path: Path) -> None:
    spec = {"method": "project.unitary", "input": "a", "algorithm": "uwpa"}
    job = Job(tmp_path, spec).stage({"w": small_checkpoint()["square.weight"]})
    with pytest.raises(StopRequested):
        job.attempt(should_stop=lambda step: True)
    assert not (tmp_path / "state" / "model.safetensors.body").stat().st_size


def low_rank_matrix() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    left, right = torch.randn(2, 20, 5, generator=generator)
    return left @ right.T


@pytest.mark.parametrize(
    ("x", "code"),
    [(low_rank_matrix(), "rank_deficient"), (torch.zeros(6, 6), "zero_matrix")],
)
def test_a_matrix_without_a_unique_nearest_is_named(
    tmp_path: Path, x: torch.Tensor, code: str
) -> None:
    with pytest.raises(InvalidInputError, match=r"a\.weight") as caught:
        unitary(tmp_path, {"a.weight": x})
    assert caught.value.code == code
    assert caught.value.tensor == "a.weight"
    assert caught.value.fix is not None
    assert "complete" in caught.value.fix


@pytest.mark.parametrize("x", [low_rank_matrix(), torch.zeros(6, 6), torch.eye(30)[:, :9] * 0])
def test_a_singular_matrix_can_be_completed(tmp_path: Path, x: torch.Tensor) -> None:
    result = unitary(tmp_path, {"w": x.contiguous()}, singular="complete")
    assert defect(result.tensors()["w"]) < 1e-5
    claims = result.claims["w"]
    assert claims["distance_to_input"] == pytest.approx(claims["optimum_distance_to_input"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named_and_nothing_is_delivered(
    tmp_path: Path, value: float
) -> None:
    tensors = small_checkpoint()
    tensors["tall.weight"][3, 4] = value
    job = Job(tmp_path, {"method": "project.unitary", "input": "art"}).stage(tensors)
    with pytest.raises(InvalidInputError, match=r"tall\.weight.*\[3, 4\]") as caught:
        job.finish()
    assert caught.value.code == "non_finite_weights"
    assert caught.value.tensor == "tall.weight"
    assert caught.value.fix
    assert not (tmp_path / "output").exists()


def test_non_finite_weights_that_nobody_selected_pass_through(tmp_path: Path) -> None:
    tensors = {"a": torch.full((3, 3), float("nan")), "b": torch.eye(3)}
    after = unitary(tmp_path, tensors, include=["b"]).tensors()
    assert bool(after["a"].isnan().all())
