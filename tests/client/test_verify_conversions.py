"""What the methods certify of low-rank conversions: energy, errors and ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from certified_files import certify
from safetensors.torch import save_file
from torch import Tensor

from stiefel.methods.local import run_local
from stiefel.specs import parse_spec
from stiefel_client.tensorfile import TensorFile
from stiefel_client.verify import Verification, measures, verify

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Calibration and the random sketch both stay behind the truncated SVD of the weights.
BESIDE_THE_OPTIMUM = {
    "calibrated": {"calibration": "art_01k0calibration"},
    "randomised": {"engine": "randomised"},
}


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def stage(folder: Path, weight: Tensor) -> Path:
    """A checkpoint of one weight, and inputs to it that differ a thousandfold in size."""
    (folder / "input").mkdir()
    save_file({"a.weight": weight.contiguous()}, folder / "input" / "model.safetensors")
    width = weight.shape[1]
    x = gaussian(4 * width, width, seed=1) * torch.logspace(-3, 0, width, dtype=torch.float64)
    save_file({"a.second_moment": x.T @ x}, folder / "input" / "calibration.safetensors")
    return folder / "input" / "model.safetensors"


def factorize(folder: Path, rank: int, **options: Any) -> Path:
    rule = {"by": "rank", "value": rank}
    spec = {"method": "factorize.low_rank", "input": "art_local", "rule": rule, **options}
    run_local(parse_spec(spec), folder / "input", folder / "out")
    return folder / "out" / "model.safetensors"


def forge(file: Path, **claims: float) -> None:
    """Other figures in the certificate, for every tensor that has them."""
    certificate = file.parent / "certificate.json"
    body = json.loads(certificate.read_text())
    for row in body["tensors"]:
        row["claims"] |= {name: value for name, value in claims.items() if name in row["claims"]}
    certificate.write_text(json.dumps(body))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("output", ["factored", "merged"])
@pytest.mark.parametrize("kind", BESIDE_THE_OPTIMUM)
def test_what_is_not_the_best_of_its_rank_is_verified_by_its_own_error(
    tmp_path: Path, kind: str, output: str, dtype: torch.dtype
) -> None:
    original = stage(tmp_path, gaussian(72, 64).to(dtype))
    file = factorize(tmp_path, 8, output=output, **BESIDE_THE_OPTIMUM[kind])
    outcome = verify(file, original=original)
    assert outcome.ok, outcome.findings
    claims = {claim.name: claim for check in outcome.tensors for claim in check.claims}
    assert {"rank", "relative_error", "retained_energy"} <= claims.keys()
    assert "optimal_error" not in claims
    forge(file, retained_energy=claims["retained_energy"].claimed + 0.02)
    assert {f.code for f in verify(file, original=original).findings} == {"claim_fails"}


def test_the_energy_of_a_merged_product_is_that_before_its_rounding(tmp_path: Path) -> None:
    """In bfloat16, where little is kept, rounding moves that little by more than 0.1 %."""
    original = stage(tmp_path, gaussian(20, 16, seed=16).to(torch.bfloat16))
    file = factorize(tmp_path, 1, output="merged", **BESIDE_THE_OPTIMUM["calibrated"])
    outcome = verify(file, original=original)
    assert outcome.ok, outcome.findings
    claims = {claim.name: claim for check in outcome.tensors for claim in check.claims}
    energy = claims["retained_energy"]
    assert abs(energy.claimed - (energy.measured or 0.0)) > 1e-3 * energy.claimed


def with_spectrum(sigma: Tensor, width: int) -> Tensor:
    """A matrix with these singular values and random singular vectors."""
    left = torch.linalg.qr(gaussian(len(sigma), len(sigma), seed=2)).Q
    right = torch.linalg.qr(gaussian(width, len(sigma), seed=3)).Q
    return (left * sigma) @ right.T


SPECTRA = {
    "slow": lambda side: torch.arange(1, side + 1, dtype=torch.float64) ** -0.5,
    "fast": lambda side: 0.5 ** torch.arange(side, dtype=torch.float64),
    "of rank 20": lambda side: (torch.arange(side) < 20).double(),
}
LAYOUTS = {
    "balanced": {},
    "us_v": {"factors": "us_v"},
    "merged": {"output": "merged"},
}


def ranks(outcome: Verification) -> set[float | None]:
    claims = [claim for check in outcome.tensors for claim in check.claims]
    return {claim.measured for claim in claims if claim.name == "rank"}


def refused(file: Path, rank: int) -> bool:
    forge(file, rank=rank)
    return {finding.code for finding in verify(file).findings} == {"claim_fails"}


@pytest.mark.parametrize("side", [64, 200])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_a_rank_below_that_of_the_stored_numbers_is_refused(
    tmp_path: Path, spectrum: str, layout: str, dtype: torch.dtype, side: int
) -> None:
    original = stage(tmp_path, with_spectrum(SPECTRA[spectrum](side), side + 8).to(dtype))
    file = factorize(tmp_path, 25, **LAYOUTS[layout])
    outcome = verify(file, original=original)
    assert outcome.ok, outcome.findings
    (measured,) = ranks(outcome)
    assert measured is not None
    # Only a merged product loses its smallest singular values among its own rounding.
    faded = layout == "merged" and spectrum != "slow"
    assert 3 < measured <= 25 if faded else measured == 25
    assert refused(file, int(measured) - 1)
    assert refused(file, 3)
    assert refused(file, 0)
    assert refused(file, side + 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_rank_of_a_large_half_precision_product_is_measured(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """The side times eps, a usual bound, is above the largest singular value here."""
    W = gaussian(1100, 40, seed=4) @ gaussian(40, 1100, seed=5)
    save_file({"w": W.to(dtype)}, tmp_path / "w.safetensors")
    with TensorFile(tmp_path / "w.safetensors") as file:
        assert measures.product_rank(file, file.tensors["w"]) == 40


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64, torch.complex64])
def test_rounding_never_counts_as_rank(tmp_path: Path, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rank, *shape = torch.randint(1, 90, (3,), generator=generator).tolist()
    # Powers of a Gaussian make some numbers much larger than others, whose rounding stands out.
    left, right = gaussian(shape[0], rank, seed=seed) ** 5, gaussian(rank, shape[1], seed=seed) ** 3
    save_file({"w": (1e-4 * left @ right).to(dtype)}, tmp_path / "w.safetensors")
    with TensorFile(tmp_path / "w.safetensors") as file:
        measured = measures.product_rank(file, file.tensors["w"])
    assert measured is not None
    assert 1 <= measured <= rank


def certified(folder: Path, role: str, tensors: dict[str, Tensor]) -> Path:
    """A file whose certificate claims rank 3 of every tensor."""
    save_file(tensors, folder / "model.safetensors")
    rows = {name: (role, "a.weight", {"rank": 3}) for name in tensors}
    body = certify(folder / "model.safetensors", rows, {})
    (folder / "certificate.json").write_text(json.dumps(body))
    return folder / "model.safetensors"


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_zeros_and_what_is_not_finite_have_no_rank(
    tmp_path: Path, dtype: torch.dtype, value: float
) -> None:
    good, bad = gaussian(150, 3).to(dtype), torch.full((3, 150), value, dtype=dtype)
    for role, tensors in (("factor", {"out": good, "in": bad}), ("merged", {"w": bad})):
        outcome = verify(certified(tmp_path, role, tensors))
        assert {finding.code for finding in outcome.findings} == {"claim_fails"}
        assert {finding.where for finding in outcome.findings} == set(tensors)


def test_a_product_among_the_smallest_numbers_of_float16_is_not_measurable(tmp_path: Path) -> None:
    steps = torch.sign(gaussian(64, 64))
    outcome = verify(certified(tmp_path, "merged", {"w": (steps * 2.0**-24).half()}))
    assert outcome.ok
    assert ranks(outcome) == {None}


def test_a_double_precision_product_of_any_size_is_measured(tmp_path: Path) -> None:
    W = gaussian(30, 4) @ gaussian(4, 20)
    for size in (1e-200, 1e200):
        save_file({"w": size * W}, tmp_path / "w.safetensors")
        with TensorFile(tmp_path / "w.safetensors") as file:
            assert measures.product_rank(file, file.tensors["w"]) == 4
            assert measures.factor_rank(file, file.tensors["w"]) == 4
