"""Configs of the transformers library: those of the Hub build, those without sense are refused."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.models import Signature, build_network
from stiefel.models.adapter import architecture
from stiefel.specs.networks import AnyNetwork

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyNetwork)
LANGUAGE = Signature("tokens", (16,), 256, per_step=True, vocabulary=256)
SIGNATURES = {
    "image_classification": Signature("image", (3, 32, 32), 10),
    "sequence_classification": Signature("tokens", (16,), 2, vocabulary=257),
    "causal_language_model": LANGUAGE,
}
BLOCK = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
VIT = {"model_type": "vit", "patch_size": 8, **BLOCK}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1}
LLAMA = {**BLOCK, "num_key_value_heads": 2, "rope_theta": 1e6, "torch_dtype": "bfloat16"}


def build(task: str, config: dict[str, Any]) -> nn.Module:
    spec = {"family": "transformers", "task": task, "config": config}
    return architecture(build_network(ADAPTER.validate_python(spec), SIGNATURES[task], seed=0))


# As their config.json on the Hub has them, but for the sizes.
@pytest.mark.parametrize(
    ("task", "config"),
    [
        ("causal_language_model", GPT2 | {"n_ctx": 1024, "task_specific_params": {"a": {"b": 1}}}),
        ("causal_language_model", LLAMA | {"model_type": "llama", "rope_scaling": None}),
        (
            "causal_language_model",
            LLAMA | {"model_type": "qwen2", "use_mrope": False, "max_window_layers": 24},
        ),
        (
            "sequence_classification",
            BLOCK | {"model_type": "bert", "gradient_checkpointing": False, "vocab_size": 30522},
        ),
        (
            "sequence_classification",
            {"model_type": "distilbert", "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 8}
            | {"tie_weights_": True, "architectures": ["DistilBertForMaskedLM"]},
        ),
        ("image_classification", VIT | {"encoder_stride": 16, "transformers_version": "4.13.0"}),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_config_of_the_hub_builds(task: str, config: dict[str, Any]) -> None:
    network = build(task, config)
    assert network.config.model_type == config["model_type"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("task", "config", "code", "field", "words"),
    [
        ("image_classification", VIT | {"hidden_size": -2}, "", "config", "negative"),
        ("image_classification", VIT | {"hidden_size": "big"}, "", "config", "hidden_size"),
        ("image_classification", VIT | {"hidden_act": "banana"}, "", "config", "banana"),
        ("image_classification", VIT | {"dtype": "banana"}, "", "config", "banana"),
        ("image_classification", VIT | {"patch_size": 0}, "", "config", "ZeroDivisionError"),
        ("image_classification", VIT | {"hiden_size": 8}, "", "config/hiden_size", "hidden_size"),
        ("causal_language_model", GPT2 | {"n_head": 3}, "", "config", "num_heads"),
        ("causal_language_model", VIT, "", "task", "offers no causal language model"),
        (
            "image_classification",
            {"model_type": "timm_wrapper", "architecture": "resnet18"},
            "network_not_available",
            "config/model_type",
            "timm",
        ),
    ],
)
def test_a_config_without_sense_is_refused(
    task: str, config: dict[str, Any], code: str, field: str, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        build(task, config)
    assert caught.value.code == (code or "network_does_not_fit")
    assert caught.value.field == f"/network/{field}"


def test_names_of_classes_are_kept_where_there_are_as_many() -> None:
    names = {str(index): f"digit {index}" for index in range(10)}
    back = {name: int(index) for index, name in names.items()}
    kept = build("image_classification", VIT | {"id2label": names, "label2id": back})
    assert kept.config.id2label[3] == "digit 3"  # type: ignore[union-attr, index]
    other = build("image_classification", VIT | {"id2label": {"0": "cat", "1": "dog"}})
    assert len(other.config.id2label) == 10  # type: ignore[union-attr, arg-type]
