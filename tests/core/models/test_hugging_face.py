"""Configs of the transformers library: those of the Hub build, those without sense are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
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
STAGES = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 8], "torch_dtype": "float32"}
VIT = {"model_type": "vit", "patch_size": 8, **BLOCK}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_head": 2, "n_layer": 1}
BERT = {"model_type": "bert", "vocab_size": 30522, **BLOCK}
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
            BERT | {"gradient_checkpointing": False, "position_embedding_type": "absolute"},
        ),
        (
            "sequence_classification",
            BERT | {"directionality": "bidi", "pooler_type": "first_token_transform"},
        ),
        ("sequence_classification", BERT | {"bad_words_ids": None, "temperature": 1.0}),
        (
            "sequence_classification",
            BERT | {"model_type": "roberta", "max_position_embeddings": 514, "type_vocab_size": 1},
        ),
        (
            "sequence_classification",
            BERT | {"model_type": "deberta-v2", "position_buckets": 256, "share_att_key": True},
        ),
        (
            "sequence_classification",
            BERT | {"model_type": "electra", "embedding_size": 8, "generator_size": "0.25"},
        ),
        ("sequence_classification", BERT | {"model_type": "albert", "down_scale_factor": 1}),
        ("causal_language_model", GPT2 | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}}),
        ("causal_language_model", BLOCK | {"model_type": "gpt_neox", "rotary_emb_base": 10000}),
        ("causal_language_model", LLAMA | {"model_type": "gemma", "hidden_activation": None}),
        (
            "sequence_classification",
            {"model_type": "distilbert", "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 8}
            | {"tie_weights_": True, "architectures": ["DistilBertForMaskedLM"]},
        ),
        ("image_classification", VIT | {"encoder_stride": 16, "transformers_version": "4.13.0"}),
        ("image_classification", VIT | {"model_type": "deit", "image_size": 224}),
        (
            "image_classification",
            STAGES | {"model_type": "resnet", "embedding_size": 8, "out_features": ["stage4"]},
        ),
        ("image_classification", STAGES | {"model_type": "convnext", "patch_size": 4}),
        (
            "image_classification",
            {"model_type": "swin", "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]}
            | {"path_norm": True, "num_layers": 2, "hidden_size": 16, "window_size": 4},
        ),
        (
            "image_classification",
            {"model_type": "mobilenet_v2", "depth_multiplier": 0.35}
            | {"semantic_loss_ignore_index": 255, "tf_padding": True},
        ),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_a_config_of_the_hub_builds(task: str, config: dict[str, Any]) -> None:
    network = build(task, config)
    assert network.config.model_type == config["model_type"]  # type: ignore[union-attr]


def test_images_may_be_of_any_height_and_width() -> None:
    hiera = {"model_type": "hiera", "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1] * 4}
    assert build("image_classification", hiera).config.image_size == (32, 32)  # type: ignore[union-attr]
    spec = ADAPTER.validate_python(
        {"family": "transformers", "task": "image_classification", "config": VIT}
    )
    wide = build_network(spec, Signature("image", (3, 16, 48), 10), seed=0)
    assert wide(torch.zeros(2, 3, 16, 48)).shape == (2, 10)


def test_an_older_name_of_a_setting_has_its_effect() -> None:
    for model_type in ("llama", "qwen2"):
        built = build("causal_language_model", LLAMA | {"model_type": model_type})
        assert built.config.rope_parameters["rope_theta"] == 1e6  # type: ignore[union-attr, index]


@pytest.mark.parametrize(
    ("task", "config", "field", "words"),
    [
        ("image_classification", VIT | {"hidden_size": -2}, "config", "negative"),
        ("image_classification", VIT | {"hidden_size": "big"}, "config", "hidden_size"),
        ("image_classification", VIT | {"hidden_act": "banana"}, "config", "banana"),
        ("image_classification", VIT | {"dtype": "banana"}, "config", "banana"),
        ("image_classification", VIT | {"patch_size": 0}, "config", "ZeroDivisionError"),
        ("image_classification", VIT | {"hiden_size": 8}, "config/hiden_size", "hidden_size"),
        ("image_classification", VIT | {"id2label": 5}, "config", "len"),
        ("image_classification", {"model_type": "nougat"}, "config", "donut_swin"),
        ("causal_language_model", GPT2 | {"n_head": 3}, "config", "num_heads"),
        ("causal_language_model", VIT, "task", "offers no causal language model"),
        (
            "image_classification",
            {"model_type": "timm_wrapper", "architecture": "hf_hub:someone/something"},
            "config/model_type",
            "timm",
        ),
    ],
)
def test_a_config_without_sense_is_refused(
    task: str, config: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        build(task, config)
    assert caught.value.code == "network_does_not_fit"
    assert caught.value.field == f"/network/{field}"


def test_an_architecture_that_needs_another_library_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without(*_: Any, **__: Any) -> None:
        raise ImportError("vit requires the Detectron library")

    monkeypatch.setattr("transformers.ViTConfig.__init__", without)
    with pytest.raises(InvalidInputError, match="Detectron") as caught:
        build("image_classification", VIT)
    assert caught.value.code == "network_not_available"


def test_a_lack_of_memory_is_no_fault_of_the_config() -> None:
    with pytest.raises(RuntimeError, match="memory"):
        build("image_classification", VIT | {"intermediate_size": 2**40})


def test_names_of_classes_are_kept_where_there_are_as_many() -> None:
    names = {str(index): f"digit {index}" for index in range(10)}
    back = {name: int(index) for index, name in names.items()}
    kept = build("image_classification", VIT | {"id2label": names, "label2id": back})
    assert kept.config.id2label[3] == "digit 3"  # type: ignore[union-attr, index]
    other = build("image_classification", VIT | {"id2label": {"0": "cat", "1": "dog"}})
    assert len(other.config.id2label) == 10  # type: ignore[union-attr, arg-type]
