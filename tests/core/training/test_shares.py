"""What a run tells of its size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stiefel.methods import METHODS
from stiefel.methods.local import FolderRun
from stiefel.specs import parse_spec


def figures(folder: Path, method: str, **changes: object) -> dict[str, float]:
    """The closing figures of a short run."""
    (folder / "in").mkdir()
    x = np.random.default_rng(0).standard_normal((64, 12), dtype=np.float32)
    with (folder / "in" / "train").open("wb") as file:
        np.savez(file, x=x, y=(x[:, 0] > 0).astype(np.int64))
    data = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y", "held_out": 0.25}
    network = {"family": "mlp", "hidden": [16, 16]}
    spec = {"method": method, "network": network, "data": data, "batch_size": 16, "epochs": 2}
    run = FolderRun(folder / "in", folder / "state")
    return dict(METHODS[method].run(parse_spec(spec | changes), run).metrics)


def test_oialr_tells_the_trained_share(tmp_path: Path) -> None:
    """Dense until the transition; after it the cores, the biases and the head are trained."""
    (tmp_path / "late").mkdir()
    late = figures(tmp_path / "late", "train.oialr", delay=100, period=2)
    assert late["trainable_share"] == 1.0
    (tmp_path / "soon").mkdir()
    soon = figures(tmp_path / "soon", "train.oialr", delay=2, period=2, tested_share=1.0, rest=1)
    ranks = [value for name, value in soon.items() if name.startswith("rank/")]
    assert len(ranks) == 2
    rest = 16 + 16 + 2 * 17
    dense = 12 * 16 + 16 * 16 + rest
    assert soon["parameters_before"] == dense
    assert soon["trainable_share"] == pytest.approx((sum(r * r for r in ranks) + rest) / dense)


def test_a_short_run_of_oialr_is_factored_without_being_told_when(tmp_path: Path) -> None:
    short = figures(tmp_path, "train.oialr", cutoff=0.3)
    assert short["trainable_share"] < 1.0


@pytest.mark.parametrize("normalisation", ["none", "batch"])
def test_a_dense_run_saves_nothing(normalisation: str, tmp_path: Path) -> None:
    network = {"family": "mlp", "hidden": [16, 16], "normalisation": normalisation}
    found = figures(tmp_path, "train.dense", network=network)
    assert found["parameters_before"] == found["parameters_after"]
    assert found["parameters_saved"] == 0.0


def test_tied_weights_count_once(tmp_path: Path) -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 8}
    task = {"family": "transformers", "task": "causal_language_model", "config": config}
    data = {"kind": "text", "train": "art_1", "context": 8}
    counts = {}
    for method in ("train.dense", "train.dlrt"):
        source = tmp_path / method / "in"
        source.mkdir(parents=True)
        (source / "train").write_bytes(b"to be or not to be, that is the question " * 20)
        spec = {"method": method, "network": task, "data": data, "batch_size": 4, "max_steps": 2}
        run = FolderRun(source, tmp_path / method / "state")
        counts[method] = dict(METHODS[method].run(parse_spec(spec), run).metrics)
    assert counts["train.dense"]["parameters_saved"] == 0.0
    assert 0.0 < counts["train.dlrt"]["parameters_saved"] < 1.0
