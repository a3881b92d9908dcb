"""Swapped layers inside models that share, inspect, mask or transpose them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stiefel.conv1d import is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.lowrank import (
    LowRankConv2d,
    LowRankIntegrator,
    export,
    load_factored,
    merge,
    to_low_rank,
)
from stiefel.projection.calibration import collect_moments, factorize_model
from stiefel.projection.sequential import factorize_sequentially


class Conv1D(nn.Module):
    """As Hugging Face models have it: ``y = x W + b`` with W of shape ``(nx, nf)``."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def transposed() -> nn.Sequential:
    return nn.Sequential(Conv1D(16, 16), nn.Tanh(), Conv1D(24, 16), nn.Linear(24, 3))


def test_transposed_layers_go_through_every_file_and_back(generator):
    model, x = transposed(), torch.randn(5, 16, generator=generator)
    assert is_transposed_linear(model[0])
    to_low_rank(model, 4)
    wanted = model(x)
    trained = load_factored(transposed(), model.state_dict()).model
    assert torch.allclose(trained(x), wanted)
    plain = transposed()
    plain.load_state_dict(merge(trained).state_dict())
    assert torch.allclose(plain(x), wanted, atol=1e-5)
    export(model, form="factored")
    for _ in range(2):  # what was loaded can be saved and loaded again
        model = load_factored(transposed(), model.state_dict()).model
        assert torch.allclose(model(x), wanted, atol=1e-5)
    plain.load_state_dict(merge(model).state_dict())
    assert torch.allclose(plain(x), wanted, atol=1e-5)


def test_transposed_layers_are_factored_by_what_they_see(generator):
    model, x = transposed(), torch.randn(200, 16, generator=generator)
    made = factorize_model(model, collect_moments(model, ["0", "2"], [x]), ranks={"0": 4, "2": 6})
    loaded = load_factored(transposed(), made.tensors).model
    for name, seen in (("0", x), ("2", torch.tanh(model[0](x)))):
        change = loaded.get_submodule(name)(seen) - model.get_submodule(name)(seen)
        error = made.layers[name].predicted_error
        assert float(change.detach().norm()) == pytest.approx(error, rel=1e-4)


def test_a_layer_under_two_names_stays_one(generator):
    model = nn.Sequential(nn.Linear(8, 8))
    model.add_module("again", model[0])
    model.add_module("head", nn.Linear(8, 2))
    to_low_rank(model, 2)
    assert model[0] is model[1]
    assert type(model[0]).__name__ == "LowRankLinear"
    assert type(merge(model)[0]) is nn.Linear
    assert model[0] is model[1]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_convolution_trains_on_when_a_basis_is_full(groups, layout, generator):
    model = nn.Sequential(LowRankConv2d.from_dense(nn.Conv2d(8, 8, 3, groups=groups), 8 // groups))
    integrator = LowRankIntegrator(model, torch.optim.SGD(model.parameters(), 0.01))
    x = torch.randn(2, 8, 6, 6, generator=generator).to(memory_format=layout)
    for _ in range(6):
        integrator.zero_grad()
        model(x).square().sum().backward()
        integrator.step()
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())


def test_a_transformer_encoder_takes_masks(generator):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 1)
    to_low_rank(model, 2, keep_last=False)
    x = torch.randn(2, 5, 8, generator=generator)
    mask = torch.tensor([[False] * 5, [False] * 4 + [True]])
    assert model.eval()(x, src_key_padding_mask=mask).shape == x.shape


def test_loading_keeps_the_mode_of_a_layer():
    build = lambda: nn.Sequential(nn.MultiheadAttention(8, 2, dropout=0.5))  # noqa: E731
    model = build()
    to_low_rank(model, 2, keep_last=False)
    assert not load_factored(build().eval(), model.state_dict()).model[0].training


def test_factors_of_a_whole_grouped_kernel_are_multiplied(generator):
    pair = {
        "0.factor_out": torch.randn(16, 4, 1, 1, generator=generator),
        "0.factor_in": torch.randn(4, 4, 3, 3, generator=generator),
        "0.bias": torch.zeros(16),
    }
    loaded = load_factored(nn.Sequential(nn.Conv2d(16, 16, 3, groups=4)), pair)
    assert loaded.merged == ("0.weight",)
    assert loaded.model(torch.randn(1, 16, 5, 5)).shape == (1, 16, 3, 3)


def test_factors_of_another_shape_are_refused_and_another_dtype_is_cast(generator):
    pair = {
        "0.factor_out": torch.randn(16, 4, generator=generator),
        "0.factor_in": torch.randn(4, 16, generator=generator),
        "0.bias": torch.zeros(16),
    }
    model = load_factored(nn.Sequential(nn.Linear(16, 16)).double(), pair).model
    assert model(torch.randn(2, 16, dtype=torch.float64)).dtype == torch.float64
    with pytest.raises(InvalidInputError, match=r"make \[16, 16\]"):
        load_factored(nn.Sequential(nn.Linear(9, 16)), pair)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(16, 16),
        lambda: nn.Conv2d(8, 8, 3),
        lambda: nn.Conv2d(8, 8, 3, groups=2, bias=False),
        lambda: Conv1D(16, 16),
    ],
)
def test_factored_layers_take_up_another_rank(make):
    few, less, many = (
        to_low_rank(nn.Sequential(make()), rank, keep_last=False).model for rank in (2, 1, 3)
    )
    for model in (few, less, many):
        export(model, form="factored")
    outer, inner = few[0].factor_out, few[0].factor_in
    state = many.state_dict()
    few.load_state_dict(state)
    assert few[0].factor_out is outer
    assert few[0].factor_in is inner
    assert torch.equal(few[0].weight, many[0].weight)
    assert load_factored(less, state).factored == ("0",)
    assert torch.equal(less[0].weight, many[0].weight)
    narrow = {name: tensor[:4] for name, tensor in state.items()}
    with pytest.raises(InvalidInputError):
        load_factored(few, narrow)
    assert torch.equal(few[0].weight, many[0].weight)


def test_the_input_has_the_name_that_torch_gives_it():
    for layer, x in (
        (nn.Linear(8, 8), torch.ones(2, 8)),
        (nn.Conv2d(8, 8, 3), torch.ones(8, 4, 4)),
    ):
        model = to_low_rank(nn.Sequential(layer), 2, keep_last=False).model
        for _ in range(2):
            assert torch.equal(model[0](input=x), model(x))
            export(model, form="factored")


def test_a_convolution_shows_what_code_asks_it_for():
    like = nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=2)
    layer = LowRankConv2d.from_dense(like, 3)
    names = ("kernel_size", "stride", "padding", "dilation", "groups")
    for name in (*names, "in_channels", "out_channels"):
        assert getattr(layer, name) == getattr(like, name)
    model = nn.Sequential(layer)
    weight = layer.weight.detach().reshape(like.weight.shape)
    export(model, form="factored")
    assert model[0].in_channels == 4
    assert torch.allclose(model[0].weight, weight, atol=1e-6)


def test_layers_share_a_moment_only_while_they_receive_the_same(generator):
    model = nn.ModuleDict({name: nn.Linear(6, 6) for name in "abc"})
    x, z = (torch.randn(10, 6, generator=generator) for _ in range(2))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x):
            a, b = self.layers["a"](x), self.layers["b"](x)
            again = self.layers["a"](z)
            return a + b + again + self.layers["c"](x.mul_(2))

    moments = collect_moments(Net(), [f"layers.{n}" for n in "abc"], [x.clone()])
    assert [moments[f"layers.{n}"].count for n in "abc"] == [20, 10, 10]
    b, c = (moments[f"layers.{n}"].matrix for n in "bc")
    assert torch.allclose(c, 4 * b)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
@pytest.mark.parametrize("form", ["factored", "merged", "turned back", "trained"])
def test_attention_finds_back_into_the_ordinary_layer(sizes, form, generator):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = nn.MultiheadAttention(8, 2, batch_first=True, **sizes)

        def forward(self, q, k, v):
            return self.attend(q, k, v)[0]

    widths = (8, sizes.get("kdim", 8), sizes.get("vdim", 8))
    given = [torch.randn(2, 5, width, generator=generator) for width in widths]
    net = Net()
    to_low_rank(net, 2, keep_last=False)
    wanted = net(*given)
    if form == "turned back":
        plain = Net()
        plain.load_state_dict(merge(net).state_dict())
        assert type(net.attend) is nn.MultiheadAttention
    else:
        if form != "trained":
            export(net, form=form)
        plain = load_factored(Net(), net.state_dict()).model
    assert torch.allclose(plain(*given), wanted, atol=1e-6)


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_a_convolution_finds_back_into_one_layer_whatever_it_pads(form, generator):
    x = torch.randn(2, 4, 9, 9, generator=generator, dtype=torch.float64)
    for options in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        net = nn.Sequential(nn.Conv2d(4, 6, 3, **options), nn.Conv2d(6, 2, 1)).double()
        wanted = to_low_rank(net, 2).model(x)
        export(net, form=form)
        torch.testing.assert_close(net(x), wanted)
        merge(net)
        assert type(net[0]) is nn.Conv2d
        torch.testing.assert_close(net(x), wanted)


def test_hooks_move_along_and_their_handles_still_work():
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3))
    seen = []
    handle = net[0].register_forward_hook(lambda module, *_: seen.append(type(module).__name__))
    to_low_rank(net, 2)
    net(torch.ones(1, 16))
    export(net, form="factored")
    net(torch.ones(1, 16))
    handle.remove()
    net(torch.ones(1, 16))
    assert seen == ["LowRankLinear", "FactoredLinear"]


def test_a_frozen_bias_of_attention_stays_frozen():
    attention = nn.MultiheadAttention(16, 2, kdim=12)
    attention.in_proj_bias.requires_grad_(False)
    net = to_low_rank(nn.Sequential(attention, nn.Linear(4, 4)), 2, keep_last=False, include="0")
    assert not net.model[0].q_proj.bias.requires_grad


def test_half_precision_factors_load_export_and_merge():
    def fresh() -> nn.Sequential:
        return nn.Sequential(nn.Linear(16, 16), nn.Conv2d(4, 6, 3), nn.Linear(16, 3))

    saved = {k: v.bfloat16() for k, v in to_low_rank(fresh(), 2).model.state_dict().items()}
    for form in ("factored", "merged"):
        net = load_factored(fresh().bfloat16(), saved).model
        wanted = net[0](torch.ones(1, 16).bfloat16())
        export(net, form=form)
        got = net[0](torch.ones(1, 16).bfloat16())
        torch.testing.assert_close(got, wanted, atol=0.05, rtol=0.05)


def test_a_budget_that_is_the_whole_model_leaves_it_whole(generator):
    net = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 5))
    x = torch.randn(200, 16, generator=generator)
    moments = collect_moments(net, ["0", "2"], [x])
    for made in (
        factorize_model(net, moments, budget=16 * 12 + 12 * 5),
        factorize_sequentially(net, moments, [x], budget=16 * 12 + 12 * 5),
    ):
        assert made.kept == ("0", "2")
        assert not made.layers
        loaded = load_factored(copy.deepcopy(net), made.tensors)
        assert not loaded.factored
        assert torch.equal(loaded.model(x), net(x))
    less = factorize_model(net, moments, budget=16 * 12 + 12 * 5 - 1)
    assert sum(v.numel() for k, v in less.tensors.items() if "bias" not in k) < 16 * 12 + 12 * 5
