"""Swap-in, merge, export and factored checkpoints, Hugging Face models included."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn.utils import parametrizations

from stiefel.errors import InvalidInputError
from stiefel.lowrank import (
    FactoredConv2d,
    FactoredLinear,
    LowRankConv2d,
    LowRankIntegrator,
    LowRankLinear,
    RankRule,
    export,
    load_factored,
    merge,
    to_low_rank,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.wide = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        tokens = self.conv(x).flatten(2).mT
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.head(torch.relu(self.wide(tokens)).mean(1))


@pytest.fixture
def images(generator):
    return torch.randn(2, 3, 6, 6, generator=generator)


def reasons(conversion):
    return {s.name: s.reason for s in conversion.skipped}


def test_patterns_ranks_and_the_account_of_what_stayed():
    conversion = to_low_rank(Net(), {"conv": 5}, include=["conv", "wide", "head"], exclude=["wide"])
    assert conversion.ranks == {"conv": 5}
    assert isinstance(conversion.model.conv, LowRankConv2d)
    assert reasons(conversion) == {
        "attention": "matches no include pattern",
        "wide": "excluded by 'wide'",
        "head": "the last layer is kept",
    }
    ranks = to_low_rank(Net(), keep_last=False).ranks
    assert ranks == {"conv": 5, "attention": 3, "wide": 5, "head": 1}
    by_tail = to_low_rank(Net(), RankRule(0.9))
    assert all(rank >= 1 for rank in by_tail.ranks.values())


def test_layers_that_cannot_be_converted_say_why():
    net = nn.ModuleDict(
        {
            "frozen": nn.Linear(20, 20),
            "tied": nn.Linear(20, 20),
            "twin": nn.Linear(20, 20),
            "odd": type("Odd", (nn.Linear,), {})(20, 20),
            "turned": parametrizations.orthogonal(nn.Linear(20, 20)),
            "low": nn.Linear(20, 20).half(),
            "thin": nn.Linear(20, 2),
            "extra": nn.MultiheadAttention(20, 2, add_zero_attn=True),
            "good": nn.Linear(20, 20),
        }
    )
    net["frozen"].weight.requires_grad_(False)
    net["twin"].weight = net["tied"].weight
    conversion = to_low_rank(net, 5, keep_last=False)
    assert conversion.ranks == {"good": 5}
    said = reasons(conversion)
    assert said["frozen"] == "frozen"
    assert "tied" in said["tied"]
    assert "tied" in said["twin"]
    assert "Odd" in said["odd"]
    assert "parametrized" in said["turned"]
    assert "float16" in said["low"]
    assert "break-even is 1" in said["thin"]
    assert "zero keys" in said["extra"]
    with pytest.raises(InvalidInputError, match="no layer was converted"):
        to_low_rank(nn.Sequential(nn.Linear(4, 4)), 1)
    with pytest.raises(InvalidInputError, match="itself the layer"):
        to_low_rank(nn.Linear(30, 30), 1, keep_last=False)


@pytest.mark.parametrize("choice", [4, RankRule(0.5), None])
def test_a_model_that_is_refused_stays_as_it_was(choice):
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    net[1].weight.data[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="'1' holds NaN") as caught:
        to_low_rank(net, choice, keep_last=False)
    assert caught.value.code == "non_finite_weights"
    assert [type(layer) for layer in net] == [nn.Linear, nn.Linear]


def test_ranks_by_name_and_zero_weights_are_accounted_for():
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20))
    with pytest.raises(InvalidInputError, match="'9'") as caught:
        to_low_rank(net, {"0": 3, "9": 3})
    assert caught.value.code == "unknown_layer"
    with pytest.raises(InvalidInputError) as caught:
        to_low_rank(net, 0)
    assert caught.value.code == "rank_out_of_range"
    nn.init.zeros_(net[1].weight)
    conversion = to_low_rank(net, RankRule(0.9), keep_last=False)
    assert reasons(conversion)["1"].startswith("the weight is zero")
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    assert reasons(to_low_rank(net, {"0": 3}, keep_last=False)) == {"1": "no rank is given for it"}


def test_merging_keeps_the_function_and_gives_ordinary_layers(images):
    images = images.double()
    net = to_low_rank(Net().double(), 4).model.eval()
    before = net(images)
    merge(net)
    torch.testing.assert_close(net(images), before, atol=1e-12, rtol=1e-10)
    assert type(net.conv) is nn.Conv2d
    assert type(net.wide) is nn.Linear


@pytest.mark.parametrize("form", ["factored", "merged", "auto"])
@pytest.mark.parametrize("example", [False, True])
def test_every_export_keeps_the_function(images, form, example):
    images = images.double()
    net = to_low_rank(Net().double(), 4).model.eval()
    before = net(images)
    report = export(net, form=form, example=(images,) if example else None)
    torch.testing.assert_close(net(images), before, atol=1e-12, rtol=1e-10)
    assert len(report) == 4
    for entry in report:
        if form == "auto" and example:
            assert (entry.factored_ms <= entry.merged_ms) == (entry.form == "factored")
        elif form != "auto":
            assert entry.form == form


@pytest.mark.parametrize(
    "options", [{"groups": 4}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}]
)
@pytest.mark.parametrize("form", ["factored", "merged"])
def test_convolutions_of_all_kinds_export(generator, options, form):
    net = nn.Sequential(LowRankConv2d.from_dense(nn.Conv2d(8, 12, 3, **options), 2))
    x = torch.randn(2, 8, 6, 6, generator=generator)
    before = net(x)
    export(net, form=form)
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-5)


def test_factored_export_loads_into_the_original_architecture(tmp_path, images):
    net = to_low_rank(Net(), 4, exclude=["attention"]).model.eval()
    before = net(images)
    export(net, form="factored")
    safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    loaded = load_factored(Net().eval(), tmp_path / "model.safetensors")
    torch.testing.assert_close(loaded.model(images), before, atol=1e-5, rtol=1e-5)
    assert set(loaded.factored) == {"conv", "wide"}
    assert isinstance(loaded.model.conv, FactoredConv2d)
    assert isinstance(loaded.model.wide, FactoredLinear)


def test_training_checkpoint_loads_into_the_original_architecture(tmp_path, images):
    net = to_low_rank(Net(), 4).model.eval()
    tensors = {k: v.contiguous() for k, v in net.state_dict().items()}
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_factored(Net().eval(), tmp_path / "model.safetensors")
    assert torch.equal(loaded.model(images), net(images))
    assert set(loaded.low_rank) == {"conv", "wide", "attention.in_proj", "attention.out_proj"}
    assert isinstance(loaded.model.attention.in_proj, LowRankLinear)


def test_names_that_do_not_fit_are_refused():
    tensors = {k: v for k, v in Net().state_dict().items() if k != "head.bias"}
    with pytest.raises(InvalidInputError, match=r"head\.bias"):
        load_factored(Net(), tensors)
    load_factored(Net(), tensors, strict=False)
    tensors = Net().state_dict() | {"head.weight": torch.zeros(4, 33)}
    with pytest.raises(InvalidInputError, match="size mismatch"):
        load_factored(Net(), tensors)


def conversion_file(model, names, rank):
    """What a conversion job writes: ``N.weight`` replaced by its two factors."""
    tensors = {k: v.clone() for k, v in model.state_dict().items()}
    for name in names:
        weight = tensors.pop(f"{name}.weight")
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        tensors[f"{name}.factor_out"] = (u[:, :rank] * s[:rank]).contiguous()
        tensors[f"{name}.factor_in"] = vh[:rank].contiguous()
        model.get_submodule(name).weight.data = (u[:, :rank] * s[:rank]) @ vh[:rank]
    return tensors


def bert():
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=40,
        max_position_embeddings=16,
    )
    return BertModel(config).eval(), torch.arange(12).reshape(2, 6)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_embd=24, n_layer=2, n_head=2, n_positions=16)
    return GPT2LMHeadModel(config).eval(), torch.arange(12).reshape(2, 6)


def outputs(model, tokens):
    with torch.no_grad():
        result = model(tokens)
    return result.last_hidden_state if hasattr(result, "last_hidden_state") else result.logits


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (bert, ["encoder.layer.0.intermediate.dense", "embeddings.word_embeddings"]),
        (gpt2, ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"]),
    ],
)
def test_conversion_job_files_load_into_hugging_face_models(tmp_path, make, names):
    model, tokens = make()
    tensors = conversion_file(model, names, 6)
    tensors.pop("lm_head.weight", None)  # tied; such files keep one of the two names
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    loaded = load_factored(make()[0], tmp_path / "model.safetensors")
    torch.testing.assert_close(
        outputs(loaded.model, tokens), outputs(model, tokens), atol=1e-5, rtol=1e-4
    )
    assert len(loaded.factored) + len(loaded.merged) == 2


@pytest.mark.parametrize("make", [bert, gpt2])
def test_hugging_face_models_convert_train_and_come_back(generator, make):
    model, tokens = make()
    conversion = to_low_rank(model, 4, exclude=["pooler*"])
    embedding = "no low-rank counterpart of Embedding"
    left = [s for s in conversion.skipped if s.reason != embedding and "pooler" not in s.name]
    assert all("tied" in s.reason or "last" in s.reason for s in left)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(model, optimizer, phase=2)
    model.train()
    for _ in range(4):
        integrator.zero_grad()
        result = model(tokens)
        states = result.last_hidden_state if make is bert else result.logits
        states.square().mean().backward()
        assert integrator.step().skipped == ()
    integrator.finish()
    model.eval()
    before = outputs(model, tokens)
    fresh = load_factored(make()[0], model.state_dict()).model
    torch.testing.assert_close(outputs(fresh, tokens), before)
    merge(model)
    torch.testing.assert_close(outputs(model, tokens), before, atol=1e-4, rtol=1e-4)


def test_a_merged_model_has_the_weights_of_the_layers_that_were_there():
    model, tokens = gpt2()  # its Conv1D layers store W^T
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    to_low_rank(model, 4)
    merged = merge(model).eval()
    assert {name: tensor.shape for name, tensor in merged.state_dict().items()} == shapes
    fresh = gpt2()[0]
    fresh.load_state_dict(merged.state_dict())
    torch.testing.assert_close(outputs(fresh, tokens), outputs(merged, tokens))
