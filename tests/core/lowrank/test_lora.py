"""PiSSA adapters: the function is unchanged, and peft loads what we write."""

from __future__ import annotations

import json
import re

import pytest
import safetensors.torch
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.lora import save_adapter, split_pissa


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 20), nn.Linear(20, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.second(torch.tanh(self.first(x))))


def test_the_adapter_holds_the_leading_part_and_the_base_the_rest():
    net = Net()
    before = net.first.weight.detach().clone()
    adapter = split_pissa(net, ["first"], 4)
    sigma = torch.linalg.svdvals(before)
    torch.testing.assert_close(adapter.B["first"] @ adapter.A["first"] + net.first.weight, before)
    torch.testing.assert_close(
        torch.linalg.svdvals(net.first.weight)[:8], sigma[4:12], atol=1e-5, rtol=1e-4
    )
    with pytest.raises(InvalidInputError, match="LayerNorm"):
        split_pissa(net, ["norm"], 1)
    rest = net.first.weight.detach().clone()
    with pytest.raises(InvalidInputError, match="rank 9"):
        split_pissa(net, ["first", "second"], 9)
    with pytest.raises(InvalidInputError, match="not in the model"):
        split_pissa(net, ["first", "third"], 2)
    with torch.no_grad():
        net.second.weight[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="NaN"):
        split_pissa(net, ["first", "second"], 2)
    assert torch.equal(net.first.weight, rest)


def test_a_tied_weight_is_refused():
    net = nn.Sequential(nn.Embedding(12, 6), nn.Linear(6, 12))
    net[1].weight = net[0].weight
    with pytest.raises(InvalidInputError, match="also that of"):
        split_pissa(net, ["1"], 2)


def test_the_files_hold_what_a_lora_loader_needs(tmp_path, generator):
    """benchmarks/pissa_peft.py loads them with ``peft`` itself."""
    net = Net().eval()
    x = torch.randn(5, 12, generator=generator)
    before = net(x)
    save_adapter(split_pissa(net, ["first", "second"], 3), tmp_path, base="residual")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["lora_alpha"] == config["r"] == 3
    named = [n for n, _ in net.named_modules() if re.fullmatch(config["target_modules"], n)]
    assert named == ["first", "second"]
    tensors = safetensors.torch.load_file(tmp_path / "adapter_model.safetensors")
    with torch.no_grad():
        for name in named:
            stem = f"base_model.model.{name}.lora_"
            delta = tensors[f"{stem}B.weight"] @ tensors[f"{stem}A.weight"]
            net.get_submodule(name).weight.add_(delta)
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=1e-5)


def test_a_layer_whose_name_ends_alike_stays_out(tmp_path):
    """A loader takes ``target_modules`` as an expression for whole names, given one string."""
    net = nn.ModuleDict({"fc": nn.Linear(6, 8), "a_fc": nn.ModuleDict({"fc": nn.Linear(6, 8)})})
    save_adapter(split_pissa(net, ["fc"], 2), tmp_path)
    pattern = json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]
    assert [n for n, _ in net.named_modules() if re.fullmatch(pattern, n)] == ["fc"]
