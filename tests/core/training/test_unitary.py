"""Unitary training through the loop: frames stay frames, merged weights are the same function."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.methods.local import run_local
from stiefel.models import Signature, build_network
from stiefel.specs import parse_spec
from stiefel.specs.networks import AnyNetwork
from stiefel.training.unitary import unitary_exports
from stiefel.unitary import to_unitary

MLP = {"family": "mlp", "hidden": [16, 24, 12]}
ARRAYS = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y", "held_out": 0.25}
COPYING = {
    "kind": "copying_memory",
    "delay": 5,
    "length": 2,
    "symbols": 3,
    "batches_per_epoch": 5,
}


def trained(folder: Path, **spec: Any) -> Path:
    source, target = folder / "in", folder / "out"
    source.mkdir(parents=True)
    draw = np.random.default_rng(0)
    x = draw.standard_normal((96, *spec.pop("shape", (12,))), dtype=np.float32)
    with (source / "train").open("wb") as file:
        np.savez(file, x=x, y=(x.reshape(96, -1)[:, 0] > 0).astype(np.int64))
    base = {"method": "train.projunn", "batch_size": 16, "epochs": 2, "log_every": 2}
    run_local(parse_spec(base | spec), source, target)
    return target


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return content


@pytest.mark.parametrize("variant", ["tangent", "direct", "cayley"])
@pytest.mark.parametrize("numbers", ["real", "complex"])
def test_a_recurrence_stays_unitary_under_every_variant(
    variant: str, numbers: str, tmp_path: Path
) -> None:
    network = {"family": "rnn", "hidden": 12, "numbers": numbers}
    out = trained(tmp_path, network=network, data=COPYING, variant=variant, rank=2)
    frame = load_file(out / "model.safetensors")["recurrence.frame"]
    assert frame.is_complex() == (numbers == "complex")
    assert float(orthogonality_defect(frame)) < 1e-5
    rows = json.loads((out / "certificate.json").read_text())["tensors"]
    assert any("orthogonality_defect" in r["claims"] for r in rows if "frame" in r["name"])


def test_a_perceptron_becomes_orthogonal_but_for_its_head_and_merges_to_the_same_function(
    tmp_path: Path,
) -> None:
    out = trained(tmp_path, network=MLP, data=ARRAYS, scaling="none", learning_rate_divider=0.1)
    dense, frames = (load_file(out / f"{name}.safetensors") for name in ("model", "model.unitary"))
    built = build_network(
        TypeAdapter(AnyNetwork).validate_python(MLP), Signature("vector", (12,), 2), seed=1
    )
    built.load_state_dict(dense)
    for index in range(3):
        name = f"hidden.{index}.linear"
        frame, weight = frames[f"{name}.frame"], dense[f"{name}.weight"]
        scaled = frame * frames[f"{name}.gain"]
        assert torch.equal(weight, scaled if weight.shape == scaled.shape else scaled.mT)
        assert float(orthogonality_defect(frame)) < 1e-5
    assert "head.weight" in frames
    skipped = {row["name"] for row in report(out)["layers"] if "skipped" in row}
    assert skipped == {"head"}
    curve = report(out)["evaluations"]["defect/hidden.0.linear.frame"]
    assert all(value < 1e-3 for _, value in curve)


def test_an_orthogonal_cnn_trains_on_images(tmp_path: Path) -> None:
    network = {"family": "orthogonal_cnn", "channels": [4, 6]}
    out = trained(tmp_path, network=network, data=ARRAYS, shape=(1, 8, 8), clip_norm=1.0)
    totals = report(out)["totals"]
    assert max(v for name, v in totals.items() if name.startswith("defect/")) < 1e-4


def test_an_unconstrained_recurrence_is_the_baseline(tmp_path: Path) -> None:
    network = {"family": "rnn", "hidden": 12, "activation": "tanh"}
    fast = {"learning_rate": 0.05}
    out = trained(tmp_path, method="train.dense", network=network, data=COPYING, optimizer=fast)
    frame = load_file(out / "model.safetensors")["recurrence.frame"]
    assert float(orthogonality_defect(frame)) > 1e-2


def test_layers_that_store_the_transpose_export_it_again() -> None:
    config = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 8}
    spec = {"family": "transformers", "task": "causal_language_model", "config": config}
    network: TypeAdapter[Any] = TypeAdapter(AnyNetwork)
    tokens = Signature("tokens", (8,), 32, per_step=True, vocabulary=32)
    build = partial(build_network, network.validate_python(spec), tokens)
    original, plain = build(seed=0).eval(), build(seed=1).eval()
    report = to_unitary(original, include="*.h.0.*")
    assert {Path(item.name).suffix for item in report.swapped} == {".c_attn", ".c_proj", ".c_fc"}
    plain.load_state_dict(unitary_exports(original)["model.safetensors"])
    x = torch.arange(16).view(2, 8)
    assert torch.allclose(plain(x), original(x), atol=1e-6)


def test_copying_a_short_memory_is_learnt(tmp_path: Path) -> None:
    out = trained(
        tmp_path,
        network={"family": "rnn", "hidden": 32, "activation": "relu"},
        data=COPYING | {"delay": 3, "length": 1, "batches_per_epoch": 150},
        batch_size=64,
        schedule={"kind": "constant"},
        optimizer={"name": "rmsprop", "learning_rate": 3e-3},
        learning_rate_divider=4,
    )
    blanks_only = math.log(3) / 5
    assert report(out)["totals"]["test_loss"] < 0.2 * blanks_only


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"include": ["hidden.*", "nothing.*"]}, "pattern_matches_nothing", "/include/1"),
        ({"exclude": ["hidden.*"]}, "nothing_converted", "/include"),
    ],
)
def test_patterns_that_leave_nothing_are_refused(
    changes: dict[str, Any], code: str, field: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        trained(tmp_path, network=MLP, data=ARRAYS, **changes)
    assert (caught.value.code, caught.value.field) == (code, field)
