"""Layers against their dense twins: values, gradients, persistence, precision, autocast."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import LowRankConv2d, LowRankIntegrator, LowRankLinear
from stiefel.lowrank.convolution import kernel_matrix
from stiefel.lowrank.product import Tape

CONVOLUTIONS = {
    "plain": {"kernel_size": 3},
    "stride": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilation": {"kernel_size": (3, 2), "dilation": (1, 2), "padding": (2, 1)},
    "groups": {"kernel_size": 3, "groups": 2, "padding": 1},
    "same": {"kernel_size": 3, "padding": "same", "bias": False},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


@pytest.fixture(params=CONVOLUTIONS, ids=str)
def conv(request, generator):
    dense = nn.Conv2d(4, 6, **CONVOLUTIONS[request.param]).double()
    with torch.no_grad():
        for p in dense.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return dense


def test_convolution_equals_the_dense_one_with_its_kernel(conv, normal):
    layer = LowRankConv2d.from_dense(conv, 2)
    x = normal(3, 4, 9, 8).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    with torch.no_grad():
        conv.weight.copy_(layer.weight)
    got, want = layer(x), conv(twin)
    torch.testing.assert_close(got, want)
    layer.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    layer(x).square().sum().backward()
    want.square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    if layer.bias is not None:
        torch.testing.assert_close(layer.bias.grad, conv.bias.grad)
    G = conv.weight.grad.reshape(kernel_matrix(conv).shape)
    torch.testing.assert_close(layer.S.grad, layer.U.mT @ G @ layer.V)


def test_convolution_tape_holds_the_direct_gradients_and_the_corner(conv, normal):
    layer = LowRankConv2d.from_dense(conv, 2)
    with torch.no_grad():
        conv.weight.copy_(layer.weight)
    x = normal(3, 4, 9, 8)
    layer.tape = Tape()
    layer(x).square().sum().backward()
    conv.zero_grad()
    conv(x).square().sum().backward()
    G = conv.weight.grad.reshape(kernel_matrix(conv).shape)
    torch.testing.assert_close(layer.tape.grad_k, G @ layer.V)
    torch.testing.assert_close(layer.tape.grad_l, G.mT @ layer.U)
    left, right = normal(*layer.U.shape), normal(*layer.V.shape)
    torch.testing.assert_close(layer.corner(layer.tape, left, right), left.mT @ G @ right)


def test_full_rank_convolution_is_the_dense_one(conv, normal):
    layer = LowRankConv2d.from_dense(conv, min(kernel_matrix(conv).shape[-2:]))
    x = normal(2, 4, 7, 7)
    torch.testing.assert_close(layer(x), conv(x))
    torch.testing.assert_close(layer(x[0]), conv(x[0]))


@pytest.mark.parametrize("groups", [1, 2])
def test_convolution_trains(generator, groups):
    net = nn.Sequential(
        LowRankConv2d.from_dense(nn.Conv2d(4, 8, 3, groups=groups, padding=1), 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 3),
    )
    integrator = LowRankIntegrator(net, torch.optim.AdamW(net.parameters(), lr=1e-2), phase=2)
    x = torch.randn(32, 4, 6, 6, generator=generator)
    y = torch.randint(0, 3, (32,), generator=generator)
    losses = []
    for _ in range(40):
        integrator.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        integrator.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize("evaluation", ["factored", "merged", "auto"])
@pytest.mark.parametrize("rank", [2, 9])
def test_every_evaluation_gives_the_same_values_and_gradients(normal, evaluation, rank):
    dense = nn.Linear(9, 12).double()
    layer = LowRankLinear.from_dense(dense, rank, evaluation=evaluation)
    with torch.no_grad():
        dense.weight.copy_(layer.weight)
    layer.bias = nn.Parameter(dense.bias.detach().clone())
    x = normal(2, 5, 9).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    layer(x).square().sum().backward()
    dense(twin).square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    torch.testing.assert_close(layer.S.grad, layer.U.mT @ dense.weight.grad @ layer.V)
    torch.testing.assert_close(layer.bias.grad, dense.bias.grad)


def test_state_dict_loads_strictly_at_other_ranks(generator):
    saved = nn.Sequential(LowRankLinear(9, 7, 5), LowRankLinear(7, 6, 3))
    fresh = nn.Sequential(LowRankLinear(9, 7, 2), LowRankLinear(7, 6, 6))
    core = fresh[0].S
    fresh.load_state_dict(saved.state_dict())
    x = torch.randn(4, 9, generator=generator)
    assert torch.equal(fresh(x), saved(x))
    assert fresh[0].S is core
    wrong = nn.Sequential(LowRankLinear(9, 8, 2), LowRankLinear(8, 6, 6))
    with pytest.raises(RuntimeError, match="size mismatch"):
        wrong.load_state_dict(saved.state_dict())


def test_training_resumes_bit_identically_within_a_phase(generator):
    x, y = torch.randn(16, 9, generator=generator), torch.randn(16, 7, generator=generator)

    def build():
        net = nn.Sequential(LowRankLinear(9, 8, 3, generator=generator), nn.Tanh(), nn.Linear(8, 7))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        return net, optimizer, LowRankIntegrator(net, optimizer, phase=4)

    def train(net, integrator, steps):
        for _ in range(steps):
            integrator.zero_grad()
            (net(x) - y).square().mean().backward()
            integrator.step()

    net, optimizer, integrator = build()
    train(net, integrator, 6)
    again, other, second = build()
    again.load_state_dict(net.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    second.load_state_dict(integrator.state_dict())
    train(net, integrator, 7)
    train(again, second, 7)
    assert second.ranks == integrator.ranks
    for a, b in zip(net.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("inside", [False, True], ids=["step outside", "step inside"])
@pytest.mark.parametrize("phase", [1, 2])
def test_autocast_rounds_copies_and_keeps_float32_masters(generator, phase, inside):
    net = nn.Sequential(LowRankLinear(16, 12, 4, generator=generator))
    integrator = LowRankIntegrator(net, torch.optim.AdamW(net.parameters(), lr=1e-2), phase=phase)
    x = torch.randn(32, 16, generator=generator)
    for _ in range(4):
        integrator.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = net(x)
            loss = out.float().square().mean()
        assert out.dtype == torch.bfloat16
        loss.backward()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            integrator.step()
    layer = net[0]
    assert {layer.U.dtype, layer.S.dtype, layer.V.dtype} == {torch.float32}
    eye = torch.eye(layer.rank)
    torch.testing.assert_close(layer.U.mT @ layer.U, eye, atol=1e-5, rtol=0)


def test_half_precision_factors_compute_but_are_not_trained(generator):
    net = nn.Sequential(LowRankLinear(16, 12, 4, generator=generator)).bfloat16()
    assert net(torch.randn(2, 16, generator=generator).bfloat16()).dtype == torch.bfloat16
    with pytest.raises(InvalidInputError, match="bfloat16") as caught:
        LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert caught.value.code == "half_precision_factors"
    assert "autocast" in caught.value.fix


@pytest.mark.parametrize("rank", [0, 8])
def test_rank_over_the_limit_is_refused(rank):
    with pytest.raises(InvalidInputError, match=rf"rank {rank} is no whole number in 1\.\.7"):
        LowRankLinear(9, 7, rank)


def test_draw_keeps_the_norm_and_the_seed(generator):
    first = LowRankLinear(40, 30, 5, generator=torch.Generator().manual_seed(3))
    second = LowRankLinear(40, 30, 5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(first.S, second.S)
    draw = nn.init.uniform_(torch.empty(30, 40), -(40**-0.5), 40**-0.5, generator=generator)
    assert abs(float(first.S.detach().norm() / draw.norm()) - 1) < 0.1
