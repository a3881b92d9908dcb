"""``project.network``: what it fits, what it leaves, what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from converting import Job, Result
from safetensors.torch import save_file
from sample_network_projection import SAMPLES, network
from sample_training import DATA, arrays

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.models import build_network
from stiefel.models.adapter import architecture
from stiefel.specs import parse_spec
from stiefel.specs.signature import Signature

SPEC = {"method": "project.network", **SAMPLES["project.network"].spec}


def job(folder: Path, weights: dict[str, torch.Tensor] | None = None, **changes: Any) -> Job:
    made = arrays(Job(folder, SPEC | changes))
    if weights is None:
        weights = network(made.spec["network"]).state_dict()
    save_file(weights, made.input / "weights")
    return made


def layers(result: Result) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in result.json("report.json")["layers"]}


def test_hidden_layers_become_orthonormal_and_answer_more_like_the_original(tmp_path: Path) -> None:
    made = job(tmp_path, iterations=60, checkpoint_every=50)
    result = made.finish()
    metrics = result.outcome.metrics
    assert float(metrics["fitted_loss"]) < 0.9 * float(metrics["projected_loss"])
    losses = [values["fit_loss"] for _, values in made.run.points]
    assert len(losses) == 60
    after, before = result.tensors(), network().state_dict()
    assert after.keys() == before.keys()
    rows = layers(result)
    for name in ("hidden.0.linear", "hidden.1.linear"):
        frame = after[f"{name}.weight"] / rows[name]["gain"]
        tall = frame if frame.shape[0] >= frame.shape[1] else frame.mT
        assert float(orthogonality_defect(tall)) < 1e-5
        assert rows[name]["distance_to_input"] >= rows[name]["optimum_distance_to_input"]
    assert rows["head"]["skipped"] == "the last layer is kept"
    assert torch.equal(after["head.weight"], before["head.weight"])


def test_batch_normalisation_is_absorbed_and_layer_normalisation_stays(tmp_path: Path) -> None:
    batch = {"family": "mlp", "hidden": [24, 24], "normalisation": "batch"}
    weights = network(batch).state_dict()
    weights["hidden.0.norm.running_var"] = torch.full((24,), 4.0)
    after = job(tmp_path / "batch", weights, network=batch).finish().tensors()
    assert not [name for name in after if "norm" in name]
    kept = job(tmp_path / "kept", weights, network=batch, absorb_normalisations=False)
    assert "hidden.0.norm.running_var" in kept.finish().tensors()
    layer = batch | {"normalisation": "layer"}
    assert "hidden.0.norm.weight" in job(tmp_path / "layer", network=layer).finish().tensors()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"include": ["nothing.*"]}, "pattern_matches_nothing"),
        ({"include": ["head"]}, "nothing_converted"),
        ({"network": {"family": "mlp", "hidden": [24, 24, 8]}}, "weights_do_not_fit"),
    ],
)
def test_what_cannot_be_fitted_is_refused(
    changes: dict[str, Any], code: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        job(tmp_path, network().state_dict(), **changes).attempt()
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(
    ("value", "code"), [(torch.nan, "weights_do_not_fit"), (3e38, "loss_not_finite")]
)
def test_weights_that_answer_no_numbers_are_refused(
    value: float, code: str, tmp_path: Path
) -> None:
    weights = network().state_dict()
    weights["head.weight"][:] = value
    with pytest.raises(InvalidInputError) as caught:
        job(tmp_path, weights).attempt()
    assert caught.value.code == code


def test_a_network_of_transformers_keeps_the_names_of_its_library(tmp_path: Path) -> None:
    tiny = {"model_type": "vit", "hidden_size": 8, "num_hidden_layers": 1, "intermediate_size": 16}
    config = {**tiny, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    family = {"family": "transformers", "task": "image_classification", "config": config}
    data = DATA | {"input": "images"}
    spec = parse_spec({"method": "train.dense", "network": family, "data": data})
    built = build_network(spec.network, Signature("image", (1, 8, 8), 2), seed=1)
    made = Job(
        tmp_path, SPEC | {"network": family, "data": data, "include": ["*q_proj", "*k_proj"]}
    )
    made.input.mkdir(parents=True)
    source = np.random.default_rng(0)
    with (made.input / "train").open("wb") as file:
        images = source.standard_normal((64, 8, 8), dtype=np.float32)
        np.savez(file, images=images, y=np.arange(64) % 2)
    save_file(architecture(built).state_dict(), made.input / "weights")
    result = made.finish()
    assert result.tensors().keys() == architecture(built).state_dict().keys()
    fitted = [name for name, row in layers(result).items() if "gain" in row]
    assert fitted
    assert all(f"{name}.weight" in result.tensors() for name in fitted)
    assert result.json("config.json")["model_type"] == "vit"
