"""A real pre-trained checkpoint through the API, held against float64 SVDs made here."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from stiefel_client import Stiefel
from stiefel_client.verify import verify

KEEP = 0.5


@pytest.fixture
def layers(request: pytest.FixtureRequest) -> int:
    """All six on the embedded service; one on the distributed, for time."""
    return 6 if "embedded" in request.node.name else 1


def attention(layers: int) -> list[str]:
    within = f"encoder.layer.[0-{layers - 1}].attention"
    return [f"{within}.self.*.weight", f"{within}.output.dense.weight"]


def feed_forward(layers: int) -> list[str]:
    layer = f"encoder.layer.[0-{layers - 1}]"
    return [f"{layer}.intermediate.dense.weight", f"{layer}.output.dense.weight"]


def convert(client: Stiefel, minilm: Path, folder: Path, **spec) -> dict[str, Path]:
    source = client.uploads.upload(minilm)
    job = client.jobs.submit({"input": source.id, **spec})
    job = client.jobs.wait(job.id, timeout=240)
    assert job.succeeded, job.error
    return {path.name: path for path in client.jobs.download(job, folder)}


def test_attention_becomes_orthogonal(client, minilm, tmp_path, layers) -> None:
    files = convert(client, minilm, tmp_path, method="project.unitary", include=attention(layers))
    before, after = load_file(minilm), load_file(files["model.safetensors"])
    report = json.loads(files["report.json"].read_text())
    selected = {row["name"] for row in report["tensors"]}
    assert len(selected) == 4 * layers
    assert before.keys() == after.keys()
    for name, value in after.items():
        if name not in selected:
            np.testing.assert_array_equal(value, before[name])
            continue
        n = len(value)
        wide = value.astype(np.float64)
        left, _, right = np.linalg.svd(before[name].astype(np.float64))
        nearest = left @ right
        assert value.dtype == np.float32
        assert np.linalg.norm(wide.T @ wide - np.eye(n)) <= 1e-5 * np.sqrt(n), name
        assert np.linalg.norm(wide - nearest) <= 1e-5 * np.linalg.norm(nearest), name
    assert {row["name"] for row in report["skipped"]} == before.keys() - selected
    outcome = verify(files["model.safetensors"], original=minilm)
    assert outcome.ok, outcome.findings
    assert sum(len(check.claims) for check in outcome.tensors) == 4 * layers * 4


def test_feed_forward_becomes_low_rank(client, minilm, tmp_path, layers) -> None:
    files = convert(
        client,
        minilm,
        tmp_path,
        method="factorize.low_rank",
        include=feed_forward(layers),
        rule={"by": "keep", "value": KEEP},
    )
    before, after = load_file(minilm), load_file(files["model.safetensors"])
    assert files["model.safetensors"].stat().st_size < minilm.stat().st_size
    converted = before.keys() - after.keys()
    assert len(converted) == 2 * layers
    for name in converted:
        stem = name.removesuffix(".weight")
        first, second = after[f"{stem}.factor_out"], after[f"{stem}.factor_in"]
        source = before[name].astype(np.float64)
        rank = int(KEEP * source.size / sum(source.shape))
        assert (first.shape, second.shape) == ((len(source), rank), (rank, source.shape[1]))
        error = np.linalg.norm(first.astype(np.float64) @ second.astype(np.float64) - source)
        sigma = np.linalg.svd(source, compute_uv=False)
        best = np.linalg.norm(sigma[rank:])
        assert abs(error - best) <= 1e-5 * best, name
    outcome = verify(files["model.safetensors"], original=minilm)
    assert outcome.ok, outcome.findings


def test_a_flipped_bit_in_the_result_is_found(local, minilm: Path, tmp_path: Path) -> None:
    one = ["encoder.layer.0.attention.self.query.weight"]
    files = convert(local, minilm, tmp_path, method="project.unitary", include=one)
    weights = files["model.safetensors"]
    assert verify(weights).ok
    with weights.open("r+b") as file:
        file.seek(weights.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 8]))
    assert not verify(weights).ok


@pytest.mark.parametrize("rank", [1, 8])
def test_a_dry_run_tells_before_what_will_be(local, minilm: Path, rank: int) -> None:
    source = local.uploads.upload(minilm)
    spec = {
        "method": "factorize.low_rank",
        "input": source.id,
        "include": feed_forward(6),
        "rule": {"by": "rank", "value": rank},
    }
    jobs_before = len(local.jobs.list().data)
    plan = local.jobs.plan(spec)
    assert len(plan.tensors_selected) == 12
    assert plan.output_bytes is not None
    assert plan.output_bytes < minilm.stat().st_size
    assert len(local.jobs.list().data) == jobs_before
