"""Weights to start from, of a network that ties two of its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.models import Signature, build_network
from stiefel.models.adapter import architecture
from stiefel.specs.networks import AnyNetwork
from stiefel.training.starting import load_weights

NETWORK: TypeAdapter[Any] = TypeAdapter(AnyNetwork)
CONFIG = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 8}
TOKENS = Signature("tokens", (8,), 256, per_step=True, vocabulary=256)


def gpt2(seed: int) -> nn.Module:
    spec = {"family": "transformers", "task": "causal_language_model", "config": CONFIG}
    return architecture(build_network(NETWORK.validate_python(spec), TOKENS, seed=seed))


def classifier(seed: int) -> nn.Module:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "bert", "intermediate_size": 8, **sizes}
    spec = {"family": "transformers", "task": "sequence_classification", "config": config}
    texts = Signature("tokens", (8,), 2, vocabulary=257)
    return architecture(build_network(NETWORK.validate_python(spec), texts, seed=seed))


def test_what_save_pretrained_writes_is_whole(tmp_path: Path) -> None:
    given, network = gpt2(1), gpt2(2)
    given.save_pretrained(tmp_path)  # type: ignore[operator]
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    load_weights(network, tmp_path / "model.safetensors")
    for name, tensor in given.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_the_body_alone_starts_a_network_with_a_fresh_head(tmp_path: Path) -> None:
    given, network = classifier(1), classifier(2)
    body = {
        name.removeprefix("bert."): tensor.clone()
        for name, tensor in given.state_dict().items()
        if name.startswith("bert.")
    }
    save_file(body | {"cls.predictions.bias": torch.zeros(3)}, tmp_path / "weights")
    drawn = network.get_parameter("classifier.weight").detach().clone()
    with pytest.raises(InvalidInputError, match=r"no tensor classifier\.\w+") as caught:
        load_weights(network, tmp_path / "weights", fresh=["cls.*"])
    assert "fresh" in (caught.value.fix or "")
    load_weights(network, tmp_path / "weights", fresh=["cls.*", "classifier.*"])
    assert torch.equal(network.get_parameter("classifier.weight"), drawn)
    for name, tensor in body.items():
        assert torch.equal(network.state_dict()[f"bert.{name}"], tensor)


def test_what_older_versions_wrote_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in gpt2(1).state_dict().items()}
    body = {n.removeprefix("transformer."): w for n, w in weights.items() if "lm_head" not in n}
    save_file(body | {"h.0.attn.bias": torch.ones(1, 1, 8, 8)}, tmp_path / "weights")
    network = gpt2(2)
    load_weights(network, tmp_path / "weights")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, weights[name])
    positions = {"bert.embeddings.position_ids": torch.arange(8)[None]}
    save_file(classifier(1).state_dict() | positions, tmp_path / "weights")
    load_weights(classifier(2), tmp_path / "weights")
    save_file(classifier(1).state_dict() | {"h.0.attn.bias": torch.ones(1)}, tmp_path / "weights")
    with pytest.raises(InvalidInputError, match=r"no tensor h\.0\.attn\.bias"):
        load_weights(classifier(2), tmp_path / "weights")


@pytest.mark.parametrize("pattern", ["transformer.wte.*", "lm_head.*"])
def test_what_is_tied_to_a_fresh_tensor_is_fresh(pattern: str, tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in gpt2(1).state_dict().items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"] = torch.zeros(9, 16)
    save_file({n: w.clone() for n, w in weights.items()}, tmp_path / "weights")
    network, drawn = gpt2(2), gpt2(2)
    load_weights(network, tmp_path / "weights", fresh=[pattern])
    for name, tensor in network.state_dict().items():
        fresh = name in {"lm_head.weight", "transformer.wte.weight"}
        assert torch.equal(tensor, drawn.state_dict()[name] if fresh else weights[name])


def test_tied_tensors_that_differ_are_refused(tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in gpt2(1).state_dict().items()}
    save_file(weights, tmp_path / "weights")
    load_weights(gpt2(2), tmp_path / "weights")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, tmp_path / "weights")
    with pytest.raises(InvalidInputError, match=r"transformer\.wte\.weight") as caught:
        load_weights(gpt2(2), tmp_path / "weights")
    assert (caught.value.code, caught.value.tensor) == ("weights_do_not_fit", "lm_head.weight")
