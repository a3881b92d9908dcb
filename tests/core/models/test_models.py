"""Networks: every family builds, answers in the right shape, and is drawn by its seed alone."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from stiefel.errors import InvalidInputError
from stiefel.models import Signature, build_network
from stiefel.specs.networks import AnyNetwork

ADAPTER: TypeAdapter[Any] = TypeAdapter(AnyNetwork)
IMAGE = Signature("image", (3, 32, 32), 10)
TOKENS = Signature("tokens", (12,), 7, vocabulary=50)
SEQUENCE = Signature("sequence", (5, 3), 4)
TINY_BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TINY_VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

CASES = [
    ({"family": "mlp", "hidden": [16, 8]}, IMAGE),
    ({"family": "lenet5"}, Signature("image", (1, 28, 28), 10)),
    ({"family": "vgg16", "width": 4, "hidden": 16}, IMAGE),
    ({"family": "alexnet", "hidden": 16}, IMAGE),
    ({"family": "resnet20", "width": 4}, IMAGE),
    ({"family": "vit", "depth": 1, "heads": 2, "width": 16, "hidden": 32}, IMAGE),
    ({"family": "rnn", "hidden": 8}, SEQUENCE),
    ({"family": "rnn", "hidden": 8, "numbers": "complex"}, SEQUENCE),
    ({"family": "rnn", "hidden": 8, "activation": "relu", "initialisation": "haar"}, SEQUENCE),
    ({"family": "orthogonal_cnn", "channels": [4, 6]}, Signature("image", (3, 8, 8), 10)),
    ({"family": "transformers", "task": "image_classification", "config": TINY_VIT}, IMAGE),
    ({"family": "transformers", "task": "sequence_classification", "config": TINY_BERT}, TOKENS),
]


def example(signature: Signature, batch: int = 2) -> torch.Tensor:
    if signature.kind == "tokens":
        return torch.ones(batch, *signature.shape, dtype=torch.int64)
    return torch.zeros(batch, *signature.shape)


@pytest.mark.parametrize(("spec", "signature"), CASES, ids=lambda case: str(case)[:40])
def test_a_network_answers_in_shape_and_is_drawn_by_its_seed(
    spec: dict[str, Any], signature: Signature
) -> None:
    before = torch.get_rng_state()
    one = build_network(ADAPTER.validate_python(spec), signature, seed=3)
    two = build_network(ADAPTER.validate_python(spec), signature, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert one(example(signature)).shape == (2, signature.outputs)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_timm_is_an_extra_and_never_loads_anything() -> None:
    spec = ADAPTER.validate_python({"family": "timm", "model": "test_vit"})
    if find_spec("timm") is None:
        with pytest.raises(InvalidInputError) as caught:
            build_network(spec, IMAGE, seed=0)
        assert (caught.value.code, caught.value.field) == (
            "network_not_available",
            "/network/family",
        )
        assert "stiefel[train,timm]" in (caught.value.fix or "")
        return
    network = build_network(spec, IMAGE, seed=0)
    assert network(example(IMAGE)).shape == (2, 10)
    for name, config, field in (
        ("test_vitt", {}, "/network/model"),
        ("test_vit", {"deep": 3}, "/network/config/deep"),
        ("test_vit", {"depth": "three"}, "/network/config"),
        ("test_vit", {"patch_size": 0}, "/network/config"),
    ):
        other = spec.model_copy(update={"model": name, "config": config})
        with pytest.raises(InvalidInputError) as caught:
            build_network(other, IMAGE, seed=0)
        assert caught.value.field == field


def test_lenet_has_the_sizes_of_the_paper() -> None:
    network = build_network(
        ADAPTER.validate_python({"family": "lenet5"}), Signature("image", (1, 28, 28), 10), seed=0
    )
    shapes = [tuple(p.shape) for p in network.parameters() if p.dim() > 1]
    assert shapes == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]


@pytest.mark.parametrize(
    ("spec", "signature", "field"),
    [
        ({"family": "lenet5"}, Signature("vector", (64,), 10), "/network"),
        ({"family": "rnn"}, IMAGE, "/network/family"),
        ({"family": "orthogonal_cnn"}, SEQUENCE, "/network/family"),
        ({"family": "orthogonal_cnn", "channels": [8, 4]}, IMAGE, "/network/channels/1"),
        ({"family": "vit", "patch": 5, "width": 6}, IMAGE, "/network/patch"),
        (
            {
                "family": "transformers",
                "task": "image_classification",
                "config": {"model_type": "nonsense"},
            },
            IMAGE,
            "/network/config/model_type",
        ),
        (
            {
                "family": "transformers",
                "task": "image_classification",
                "config": TINY_VIT | {"hiden_size": 3},
            },
            IMAGE,
            "/network/config/hiden_size",
        ),
        (
            {"family": "transformers", "task": "causal_language_model", "config": TINY_BERT},
            IMAGE,
            "/network/task",
        ),
        ({"family": "mlp"}, TOKENS, "/network/family"),
        ({"family": "mlp"}, Signature("sequence", (5, 3), 4, per_step=True), "/network/family"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_by_field(
    spec: dict[str, Any], signature: Signature, field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        build_network(ADAPTER.validate_python(spec), signature, seed=0)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "spec",
    [
        {"family": "mlp", "hiden": [3]},
        {"family": "perceptron"},
        {"family": "vit", "width": 10, "heads": 3},
        {"family": "rnn", "numbers": "complex", "activation": "tanh"},
        {"family": "transformers", "task": "image_classification", "config": {}},
        {"family": "timm", "model": "hf_hub:someone/something"},
        {"family": "timm", "model": "resnet18", "config": {"pretrained": True}},
        {"family": "timm", "model": "resnet18", "config": {"checkpoint_path": "/etc/passwd"}},
        {"family": "timm", "model": "resnet18", "config": {"in_chans": 3}},
        {
            "family": "transformers",
            "task": "image_classification",
            "config": {"model_type": "vit", "auto_map": {"AutoModel": "evil.py"}},
        },
    ],
)
def test_a_spec_with_an_error_is_refused_before_anything_is_built(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(spec)
