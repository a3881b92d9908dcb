"""Weights to start from that ``save_pretrained`` wrote, under names that only its files have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file, save_model
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.models import Signature, build_network
from stiefel.models.adapter import architecture
from stiefel.specs.networks import AnyNetwork
from stiefel.training.starting import load_weights

NETWORK: TypeAdapter[Any] = TypeAdapter(AnyNetwork)
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
IMAGES = SIZES | {"image_size": 16, "patch_size": 8}
WIDE = {"intermediate_size": 24}
MIXTURE = SIZES | WIDE | {"num_key_value_heads": 1}
VIT = {"model_type": "vit", **IMAGES, **WIDE}
RENAMED = {
    "vit": VIT,
    "vit_msn": VIT | {"model_type": "vit_msn"},
    "ijepa": VIT | {"model_type": "ijepa"},
    "beit": VIT | {"model_type": "beit"},
    "dinov2": {"model_type": "dinov2", **IMAGES},
    "dinov2_with_registers": {"model_type": "dinov2_with_registers", **IMAGES},
    "gpt_neox": {"model_type": "gpt_neox", **SIZES, **WIDE},
}
IN_PIECES = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 2, **MIXTURE},
    "qwen2_moe": {"model_type": "qwen2_moe", "num_experts": 2, **MIXTURE},
    "dinov2": {"model_type": "dinov2", "use_swiglu_ffn": True, **IMAGES},
}


def build(config: dict[str, Any], seed: int) -> Any:
    if "image_size" in config:
        task, signature = "image_classification", Signature("image", (3, 16, 16), 3)
    else:
        task = "causal_language_model"
        signature = Signature("tokens", (8,), 256, per_step=True, vocabulary=256)
    spec = {"family": "transformers", "task": task, "config": config}
    return architecture(build_network(NETWORK.validate_python(spec), signature, seed=seed))


def check_equal(network: nn.Module, given: nn.Module, *, within: str = "") -> None:
    own = network.state_dict()
    for name, tensor in given.state_dict().items():
        assert not name.startswith(within) or torch.equal(own[name], tensor), name


@pytest.mark.parametrize("kind", RENAMED)
def test_what_save_pretrained_writes_loads_whatever_its_names(kind: str, tmp_path: Path) -> None:
    given, network = build(RENAMED[kind], 1), build(RENAMED[kind], 2)
    given.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not stored.keys() <= given.state_dict().keys(), "the names no longer differ"
    load_weights(network, tmp_path / "model.safetensors")
    check_equal(network, given)


@pytest.mark.parametrize("kind", ["vit", "beit"])
def test_a_body_under_the_names_of_its_file_starts_a_network(kind: str, tmp_path: Path) -> None:
    given, network = build(RENAMED[kind], 1), build(RENAMED[kind], 2)
    head = network.classifier.weight.detach().clone()
    given.base_model.save_pretrained(tmp_path)
    load_weights(network, tmp_path / "model.safetensors", fresh=["classifier.*"])
    check_equal(network, given, within=f"{network.base_model_prefix}.")
    assert torch.equal(network.classifier.weight, head)


def test_fresh_means_the_names_of_the_network(tmp_path: Path) -> None:
    given, network = build(VIT, 1), build(VIT, 2)
    drawn = network.vit.layers[1].attention.q_proj.weight.detach().clone()
    given.save_pretrained(tmp_path)
    load_weights(network, tmp_path / "model.safetensors", fresh=["vit.layers.1.*"])
    assert torch.equal(network.vit.layers[1].attention.q_proj.weight, drawn)
    check_equal(network, given, within="vit.layers.0.")


def test_a_tensor_under_both_of_its_names_is_refused(tmp_path: Path) -> None:
    given = build(VIT, 1)
    given.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    twice = "vit.layers.0.attention.q_proj.weight"
    stored[twice] = given.state_dict()[twice].clone()
    save_file(stored, tmp_path / "weights")
    with pytest.raises(InvalidInputError, match=r"no tensor vit\.encoder\.layer\.0\.\S+query"):
        load_weights(build(VIT, 2), tmp_path / "weights")


@pytest.mark.parametrize("kind", IN_PIECES)
def test_weights_in_other_pieces_are_named_with_a_remedy_that_works(
    kind: str, tmp_path: Path
) -> None:
    given, network = build(IN_PIECES[kind], 1), build(IN_PIECES[kind], 2)
    given.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match=r"gate\S+, which transformers makes of") as caught:
        load_weights(network, tmp_path / "model.safetensors")
    assert caught.value.code == "weights_do_not_fit"
    assert caught.value.field == "/weights"
    assert caught.value.tensor in network.state_dict()
    assert "safetensors.torch.save_model(" in (caught.value.fix or "")
    save_model(given, str(tmp_path / "weights"))
    load_weights(network, tmp_path / "weights")
    check_equal(network, given)
