"""What the methods certify of low-rank conversions, checked with the source at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from stiefel.methods.local import run_local
from stiefel.specs import parse_spec
from stiefel_client.verify import verify

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
