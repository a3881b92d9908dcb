"""The certificates of the methods, recomputed by the client, which shares no code with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stiefel.methods.local import run_local
from stiefel.specs import parse_spec
from stiefel_client.verify import Verification, verify

FACTORIZE = {"method": "factorize.low_rank", "break_even": False}
SPECS = {
    "polar": {"method": "project.unitary"},
    "rotation": {"method": "project.unitary", "determinant": 1},
    "gain": {"method": "project.unitary", "scale": "mean"},
    "wider dtype": {"method": "project.unitary", "output_dtype": "float32"},
    "uwpa": {"method": "project.unitary", "algorithm": "uwpa", "iterations": 20},
    "rank": FACTORIZE | {"rule": {"by": "rank", "value": 3}},
    "energy": FACTORIZE | {"rule": {"by": "energy", "value": 0.8}},
    "budget": FACTORIZE | {"rule": {"by": "share", "value": 0.2}},
    "orthonormal rows": FACTORIZE | {"rule": {"by": "rank", "value": 4}, "factors": "us_v"},
    "merged": FACTORIZE | {"rule": {"by": "rank", "value": 3}, "output": "merged"},
    "gram engine": FACTORIZE | {"rule": {"by": "ratio", "value": 0.3}, "engine": "gram"},
    "randomised": FACTORIZE | {"rule": {"by": "rank", "value": 3}, "engine": "randomised"},
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Square, tall, wide, kernel; float32, bfloat16, float16, float64 and complex."""
    random = torch.Generator().manual_seed(11)

    def gaussian(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    mirrored = gaussian(16, 16)
    mirrored[0] *= -torch.sign(torch.linalg.det(mirrored))
    tensors = {
        "square": gaussian(16, 16),
        "mirrored": mirrored,
        "tall": gaussian(40, 12),
        "wide": gaussian(12, 40),
        "kernel": gaussian(8, 6, 3, 3),
        "brain": gaussian(24, 16, dtype=torch.bfloat16),
        "half": gaussian(16, 24, dtype=torch.float16),
        "double": gaussian(14, 14, dtype=torch.float64),
        "complex": torch.complex(gaussian(12, 10), gaussian(12, 10)),
        "bias": gaussian(16),
        "ids": torch.arange(7),
    }
    folder = tmp_path_factory.mktemp("zoo")
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", SPECS)
def test_every_claim_holds_under_the_clients_own_arithmetic(zoo, tmp_path, name) -> None:
    spec = parse_spec(SPECS[name] | {"input": "art_local"})
    run_local(spec, zoo, tmp_path)
    blind = verify(tmp_path / "model.safetensors")
    assert blind.ok, blind.findings
    outcome = verify(tmp_path / "model.safetensors", original=zoo / "model.safetensors")
    assert outcome.ok, outcome.findings
    assert claimed(outcome) > claimed(blind)
    measured = [c.measured for check in outcome.tensors for c in check.claims]
    assert None not in measured
    converted = [check for check in outcome.tensors if check.role != "unchanged"]
    assert len({check.name.partition(".")[0] for check in converted}) == 9
    assert all(check.claims for check in converted)


def claimed(outcome: Verification) -> int:
    return sum(len(check.claims) for check in outcome.tensors)
