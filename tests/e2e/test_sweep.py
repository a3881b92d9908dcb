"""A paper's table as one request: low-rank training over its tolerance beside a dense baseline."""

from __future__ import annotations

import io
import json
import statistics
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from stacks import PYTHON, Stack

from stiefel_client import BadRequestError, Stiefel

TOLERANCES = [0.05, 0.3]
SEEDS = [0, 1]


@pytest.fixture
def base(client: Stiefel, tmp_path: Path) -> dict[str, Any]:
    return training(client, tmp_path)


def training(client: Stiefel, folder: Path) -> dict[str, Any]:
    """A spec without its method, on the digits."""
    found = load_digits()
    buffer = io.BytesIO()
    np.savez(buffer, x=found.images.astype(np.float32), y=found.target)
    (folder / "digits.npz").write_bytes(buffer.getvalue())
    artifact = client.uploads.upload(folder / "digits.npz").id
    return {
        "network": {"family": "mlp", "hidden": [64, 64]},
        "data": {"kind": "arrays", "train": artifact, "input": "x", "label": "y"},
        "optimizer": {"learning_rate": 5e-3},
        "epochs": 4,
        "batch_size": 64,
        "device": "cpu",
    }


def test_one_request_makes_the_table(client: Stiefel, base: dict[str, Any]) -> None:
    made = client.batches.create(
        {**base, "method": "train.dlrt"},
        grid={"truncation_tolerance": TOLERANCES, "seed": SEEDS},
        jobs=[
            {
                "custom_id": "dense",
                "spec": {**base, "method": "train.dense"},
                "grid": {"seed": SEEDS},
            }
        ],
        name="tau on the digits",
    )
    assert made.size == 6
    done = client.batches.wait(made.id, timeout=200)
    assert done.succeeded, [job.error for job in done.jobs]
    report = client.batches.report(made.id)

    assert report.varying == ["method", "truncation_tolerance", "seed"]
    cells = [tuple(row.cell.values()) for row in report.rows]
    assert cells == [
        *(("train.dlrt", tau, seed) for tau in TOLERANCES for seed in SEEDS),
        *(("train.dense", seed) for seed in SEEDS),
    ]
    for row in report.rows:
        job = client.jobs.get(row.job)
        assert (job.custom_id, job.batch) == (row.custom_id, made.id)  # type: ignore[attr-defined]
        assert job.result is not None
        assert row.metrics == {**job.result.metrics, "wall_seconds": row.metrics["wall_seconds"]}
        assert row.metrics["test_accuracy"] > 0.5
    low, _, high, _, dense, _ = (row.metrics for row in report.rows)
    assert high["parameters_after"] < low["parameters_after"]
    assert low["parameters_before"] == dense["parameters_before"] == dense["parameters_after"]
    assert high["parameters_saved"] > 0

    assert [group.rows for group in report.groups] == [[0, 1], [2, 3], [4, 5]]
    accuracies = [row.metrics["test_accuracy"] for row in report.rows[:2]]
    summary = report.groups[0].metrics["test_accuracy"]
    assert summary.mean == pytest.approx(statistics.fmean(accuracies))
    assert summary.std == pytest.approx(statistics.stdev(accuracies))
    # Seeds may end at the same ranks: of equal sizes the more accurate is on the front.
    smallest = min(
        report.rows,
        key=lambda row: (row.metrics["parameters_after"], -row.metrics["test_accuracy"]),
    )
    best = max(report.rows, key=lambda row: row.metrics["test_accuracy"])
    assert smallest.on_front
    assert any(
        row.on_front and row.metrics["test_accuracy"] == best.metrics["test_accuracy"]
        for row in report.rows
    )
    assert "| train.dense |" in client.batches.table(made.id)
    assert len(client.batches.table(made.id, "csv").splitlines()) == 1 + 6 + 2 * 3
    assert [job.id for job in client.jobs.list(batch=made.id).data] == [
        row.job for row in reversed(report.rows)
    ]


def test_a_wrong_cell_submits_nothing(client: Stiefel, base: dict[str, Any]) -> None:
    before = {batch.id for batch in client.batches.list().data}
    with pytest.raises(BadRequestError) as caught:
        client.batches.create({**base, "method": "train.dense"}, grid={"epochs": [1, 0]})
    assert caught.value.errors[0]["pointer"] == "/grid/epochs/1"
    assert {batch.id for batch in client.batches.list().data} == before


def test_cancelling_ends_every_job(client: Stiefel, base: dict[str, Any]) -> None:
    spec = {**base, "method": "train.dense", "epochs": 5000}
    made = client.batches.create(spec, grid={"seed": [0, 1, 2]})
    client.batches.cancel(made.id)
    ended = client.batches.wait(made.id, timeout=60)
    assert (ended.status, ended.counts) == ("cancelled", {"cancelled": 3})
    assert client.batches.cancel(made.id).counts == {"cancelled": 3}


def test_the_command_line_prints_the_table(
    embedded_stack: Stack, local: Stiefel, tmp_path: Path
) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({**training(local, tmp_path), "method": "train.dense"}))
    grid = ["--grid", "seed=0,1", "--grid", "network.hidden=[16],[8,8]"]
    done = subprocess.run(
        [Path(PYTHON).with_name("stiefel"), "sweep", spec, "-p", "epochs=1", *grid, "--wait"],
        env=embedded_stack.environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    header, first, *_ = done.stdout.splitlines()
    assert header.split()[:4] == ["seed", "network.hidden", "status", "test_accuracy"]
    assert first.split()[:3] == ["0", "[16]", "succeeded"]
    assert "±" in done.stdout
