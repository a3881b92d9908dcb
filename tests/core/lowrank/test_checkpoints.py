"""Factors load into the architecture they came from, whatever names its files have."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import load_factored, to_low_rank

transformers = pytest.importorskip("transformers")


def vit():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=16,
        patch_size=8,
        num_labels=3,
    )
    return transformers.ViTForImageClassification(config).eval()


def test_a_file_that_hugging_face_wrote_and_factors_of_it(tmp_path):
    model, x = vit(), torch.randn(2, 3, 16, 16)
    model.save_pretrained(tmp_path)
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert not stored.keys() <= model.state_dict().keys(), "the names no longer differ"
    factors = {}
    for name, tensor in stored.items():
        if tensor.ndim == 2 and ".layer." in name:
            U, s, Vh = torch.linalg.svd(tensor, full_matrices=False)
            stem = name.removesuffix(".weight")
            factors[f"{stem}.factor_out"], factors[f"{stem}.factor_in"] = U * s, Vh
        else:
            factors[name] = tensor
    fresh = vit()
    loaded = load_factored(fresh, factors)
    assert len(loaded.factored) == 12
    torch.testing.assert_close(fresh(x).logits, model(x).logits, atol=1e-4, rtol=1e-4)


def test_a_low_rank_model_that_hugging_face_saved(tmp_path):
    model, x = vit(), torch.randn(2, 3, 16, 16)
    to_low_rank(model, 4, exclude="*patch*")
    model.save_pretrained(tmp_path)
    fresh = vit()
    load_factored(fresh, tmp_path / "model.safetensors")
    torch.testing.assert_close(fresh(x).logits, model(x).logits)


@pytest.mark.parametrize("rank", [5, 8])
def test_factors_of_two_ranks_are_refused_by_name(rank):
    factors = {"0.factor_out": torch.zeros(48, 4), "0.factor_in": torch.zeros(rank, 32)}
    net = nn.Sequential(nn.Linear(32, 48, bias=False))
    with pytest.raises(InvalidInputError, match=f"'0' have ranks 4 and {rank}"):
        load_factored(net, factors)
    assert isinstance(net[0], nn.Linear)
