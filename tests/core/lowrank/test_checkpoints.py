"""Factors load into the architecture they came from, whatever names its files have."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
import transformers
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import export, load_factored, to_low_rank


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


@pytest.mark.parametrize("rows", [6, 12])
def test_factors_of_a_grouped_convolution_have_one_rank_in_every_group(rows):
    """With two groups, rank 4 has 8 rows, or 4 where the kernel was factored as a whole."""
    factors = {"0.factor_out": torch.zeros(16, 4, 1, 1), "0.factor_in": torch.zeros(rows, 4, 3, 3)}
    net = nn.Sequential(nn.Conv2d(8, 16, 3, groups=2, bias=False))
    with pytest.raises(InvalidInputError, match=f"'0' have ranks 4 and {rows}"):
        load_factored(net, factors)


def test_experts_that_hugging_face_merges_are_named_with_the_remedy(tmp_path):
    config = transformers.MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=2,
        vocab_size=32,
    )
    model = transformers.MixtralForCausalLM(config)
    model.save_pretrained(tmp_path)
    fresh = transformers.MixtralForCausalLM(config)
    with pytest.raises(InvalidInputError, match="experts") as caught:
        load_factored(fresh, tmp_path / "model.safetensors")
    assert "model.state_dict()" in str(caught.value.fix)


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1)
        self.wide, self.head = nn.Linear(8, 24), nn.Linear(24, 8, bias=False)
        self.again = self.wide
        self.lazy = nn.LazyLinear(3)


def broken(tensors, kind):
    if kind == "missing":
        del tensors["norm.running_mean"]
    elif kind == "unexpected":
        tensors["other.weight"] = torch.zeros(2)
    elif kind == "shape":
        tensors["norm.bias"] = torch.zeros(5)
    elif "wide.U" in tensors:
        tensors["wide.U"] = torch.zeros(23, 2)
    else:
        tensors["wide.factor_out"] = torch.zeros(24, 5)
    return tensors


@pytest.mark.parametrize("form", ["trained", "factored"])
@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape", "factors"])
def test_a_file_that_does_not_fit_changes_nothing(form, kind):
    saved = to_low_rank(Mixed(), 2).model
    if form == "factored":
        export(saved, form="factored")
    model = Mixed().eval()
    modules = dict(model.named_modules(remove_duplicate=False))
    own = model.state_dict(keep_vars=True)
    before = {name: value.clone() for name, value in own.items() if not name.startswith("lazy")}
    hooked = []
    model.wide.register_forward_hook(lambda *_: hooked.append(1))
    with pytest.raises(InvalidInputError):
        load_factored(model, broken(saved.state_dict(), kind))
    assert dict(model.named_modules(remove_duplicate=False)) == modules
    assert model.encoder.use_nested_tensor
    after = model.state_dict(keep_vars=True)
    assert all(after[name] is value for name, value in own.items())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    model.wide(torch.zeros(1, 8))
    assert hooked == [1]


@pytest.mark.parametrize("form", ["trained", "factored"])
def test_a_file_that_fits_loads_whole(form):
    saved = to_low_rank(Mixed(), 2).model
    saved.lazy(torch.zeros(1, 7))
    saved.norm.running_mean.fill_(3)
    if form == "factored":
        export(saved, form="factored")
    model = load_factored(Mixed(), saved.state_dict()).model
    assert model.wide is model.again
    assert not model.encoder.use_nested_tensor
    for name, value in saved.state_dict().items():
        if name in model.state_dict():  # projections of attention have names of their own
            assert torch.equal(model.state_dict()[name], value)
    assert float(model.norm.running_mean[0]) == 3
    assert model.lazy.weight.shape == (3, 7)
