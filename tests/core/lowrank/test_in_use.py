"""What real training loops do beside ``backward`` and ``step``."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import (
    CuttlefishSwitch,
    GaLoreAdamW,
    LowRankConv2d,
    LowRankIntegrator,
    LowRankLinear,
    OialrSchedule,
    to_low_rank,
)


class Branches(nn.Module):
    """Uses the second branch only when asked to."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(24, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x, both=False):
        return self.head(self.a(x) + self.b(x) if both else self.a(x))


def mlp(width=20):
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 12))


def train(net, integrator, x, steps):
    for _ in range(steps):
        integrator.optimizer.zero_grad()
        nn.functional.mse_loss(net(x), x[:, :12]).backward()
        integrator.step()


def test_a_layer_without_gradients_keeps_its_weight(normal):
    net = Branches()
    to_low_rank(net, 10)
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), 0.01), tolerance=0.4, phase=2
    )
    net.a.S.requires_grad_(False)
    a, b = net.a.weight.detach().clone(), net.b.weight.detach().clone()
    for _ in range(8):
        integrator.optimizer.zero_grad()
        net(normal(32, 24).float()).square().mean().backward()
        integrator.step()
    torch.testing.assert_close(net.a.weight.detach(), a)
    torch.testing.assert_close(net.b.weight.detach(), b)
    net(normal(32, 24).float(), both=True).square().mean().backward()
    integrator.step()
    integrator.finish()
    assert integrator.ranks["b"] < 10
    assert integrator.ranks["a"] == 10


def test_batches_without_a_finite_gradient_cost_nothing(normal):
    net = mlp()
    to_low_rank(net, 8)
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), 0.01), tolerance=0.4, phase=1
    )
    before = net[0].weight.detach().clone()
    for _ in range(5):
        integrator.optimizer.zero_grad()
        (net(normal(8, 16).float()).sum() * float("nan")).backward()
        assert integrator.step().skipped
    torch.testing.assert_close(net[0].weight.detach(), before)


@pytest.mark.parametrize("method", ["dlrt", "oialr"])
def test_a_centered_variance_stays_one(normal, method):
    net = mlp(32)
    to_low_rank(net, 8)
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-3, alpha=0.9, centered=True)
    x = normal(128, 16).float()
    if method == "dlrt":
        integrator = LowRankIntegrator(net, optimizer, tolerance=0.3, phase=3)
    else:
        integrator = OialrSchedule(net, optimizer, delay=0, period=2, cutoff=0.05, share=1.0)
    train(net, integrator, x, 60)
    assert all(bool(p.isfinite().all()) for p in net.parameters())


def test_a_core_that_is_not_finite_is_named(normal):
    net = mlp()
    to_low_rank(net, 4)
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.01), phase=2)
    train(net, integrator, normal(8, 16).float(), 1)
    net[0].S.data.fill_(float("nan"))
    with pytest.raises(InvalidInputError, match="core of 0") as caught:
        integrator.finish()
    assert caught.value.code == "core_not_finite"


@pytest.mark.parametrize("weight", [1e-3, 1e-2, 1e-1])
def test_a_penalty_on_the_core_leaves_the_new_directions_their_size(normal, weight):
    layer = LowRankLinear(20, 30, 4, dtype=torch.float64, bias=False)
    x, y, lr = normal(40, 20), normal(40, 30), 0.1
    W = layer.weight.detach().clone().requires_grad_()
    (G,) = torch.autograd.grad((x @ W.T - y).square().mean(), W)
    integrator = LowRankIntegrator(
        layer, torch.optim.SGD(layer.parameters(), lr), tolerance=0.0, phase=2
    )
    ((layer(x) - y).square().mean() + weight * layer.S.square().sum()).backward()
    integrator.step()
    U, V = layer.U, layer.V
    expected = W - lr * (U @ U.T @ G @ V @ V.T + 2 * weight * W)
    torch.testing.assert_close(layer.weight.detach(), expected.detach())


@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_gradients_asked_for_the_input_leave_the_tape_alone(normal, kind):
    x = normal(6, 4, 5, 5)
    nets = []
    for _ in range(2):
        torch.manual_seed(0)
        layer = nn.Linear(100, 9) if kind == "linear" else nn.Conv2d(4, 9, 3)
        net = nn.Sequential(nn.Flatten(), layer) if kind == "linear" else nn.Sequential(layer)
        to_low_rank(net.double(), 3, keep_last=False)
        integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.1), phase=1)
        net(x).square().mean().backward()
        nets.append((net, integrator))
    # The salience of the inputs, read between backward and step.
    probe = x.clone().requires_grad_()
    torch.autograd.grad(nets[1][0](probe).pow(3).sum(), probe)
    nets[1][0](probe).pow(3).sum().backward(inputs=[probe])
    weights = []
    for net, integrator in nets:
        integrator.step()
        weights.append(net[-1].weight.detach().clone())
    torch.testing.assert_close(weights[0], weights[1], atol=0, rtol=0)


def test_gradients_taken_by_autograd_grad_train_the_bases(normal):
    layer = LowRankLinear(12, 10, 2, dtype=torch.float64)
    integrator = LowRankIntegrator(layer, torch.optim.SGD(layer.parameters(), 0.1), phase=2)
    parameters = list(layer.parameters())
    gradients = torch.autograd.grad(layer(normal(8, 12)).square().mean(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    integrator.step()
    assert layer.rank == 4


def test_many_micro_batches_add_up_in_whole_precision(normal):
    layer = LowRankLinear(16, 12, 3)
    integrator = LowRankIntegrator(layer, torch.optim.SGD(layer.parameters(), 0.1), phase=2)
    x = normal(8, 16).float()
    for _ in range(512):
        with torch.autocast("cpu", torch.bfloat16):
            layer(x).sum().backward()
    ratio = (layer.U.T @ layer.tape.grad_k).norm() / layer.S.grad.norm()
    assert abs(float(ratio) - 1) < 0.01
    assert integrator.ranks == {"": 3}


def test_resuming_with_a_shorter_phase_goes_on_truncating(normal):
    net, x = mlp(), normal(32, 16).float()
    to_low_rank(net, 4)
    first = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.01), phase=5)
    train(net, first, x, 3)
    second = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.01), phase=2)
    second.load_state_dict(first.state_dict())
    train(net, second, x, 1)
    assert second.position == 0


def test_resuming_past_the_delay_ends_the_warm_up(normal):
    net, x = mlp(), normal(32, 16).float()
    to_low_rank(net, 4, dense=True)
    first = OialrSchedule(net, torch.optim.SGD(net.parameters(), 0.01), delay=20)
    train(net, first, x, 5)
    second = OialrSchedule(net, torch.optim.SGD(net.parameters(), 0.01), delay=3)
    second.load_state_dict(first.state_dict())
    train(net, second, x, 1)
    assert not net[0].is_dense


def test_the_tolerance_of_the_moment_is_resumed(normal):
    net, x = mlp(), normal(32, 16).float()
    to_low_rank(net, 8)
    first = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.01), tolerance=0.01)
    first.set_tolerance(0.5)
    train(net, first, x, 3)
    twin = copy.deepcopy(net)
    second = LowRankIntegrator(twin, torch.optim.SGD(twin.parameters(), 0.01), tolerance=0.01)
    second.load_state_dict(first.state_dict())
    train(net, first, x, 7)
    train(twin, second, x, 7)
    assert second.ranks == first.ranks
    assert first.ranks["0"] < 8


@pytest.mark.parametrize("options", [{"adaptive": False}, {"grow_only": True, "tolerance": 0.9}])
def test_an_integrator_made_during_the_warm_up_takes_up_the_later_rank(normal, options):
    net, x = mlp(), normal(32, 16).float()
    to_low_rank(net, dense=True)
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    integrator = LowRankIntegrator(net, optimizer, phase=2, **options)
    train(net, integrator, x, 1)
    ranks = CuttlefishSwitch(net, share=0.25).apply(optimizer)
    assert integrator.ranks == ranks
    train(net, integrator, x, 4)
    assert integrator.ranks == ranks


def test_a_sparse_embedding_beside_low_rank_layers(generator):
    net = nn.Sequential(nn.Embedding(9, 16, sparse=True), nn.Linear(16, 12))
    to_low_rank(net, 3, keep_last=False)
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.1), phase=2)
    before = net[0].weight.detach().clone()
    net(torch.tensor([[1, 2], [2, 3]])).square().mean().backward()
    assert not integrator.step().skipped
    assert not torch.equal(net[0].weight, before)
    integrator.zero_grad()
    (net(torch.tensor([[1, 2]])).sum() * float("inf")).backward()
    assert "0.weight" in integrator.step().skipped


def test_galore_and_an_integrator_do_not_go_together():
    net = mlp()
    to_low_rank(net, 4)
    with pytest.raises(InvalidInputError, match="GaLoreAdamW"):
        LowRankIntegrator(net, GaLoreAdamW(net.parameters(), rank=2))


def test_a_model_rolled_back_without_its_optimizer_is_told_apart(normal):
    net, x = mlp(), normal(32, 16).float()
    to_low_rank(net, 8)
    best = copy.deepcopy(net.state_dict())
    integrator = LowRankIntegrator(
        net, torch.optim.AdamW(net.parameters(), 1e-3), tolerance=0.6, phase=2
    )
    train(net, integrator, x, 2)
    assert net[0].rank < 8
    net.load_state_dict(best)
    with pytest.raises(InvalidInputError, match="'0'") as caught:
        train(net, integrator, x, 1)
    assert caught.value.code == "state_mismatch"


@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_may_be_followed_by_work_in_place(normal, bias):
    net = nn.Sequential(nn.Conv2d(3, 16, 3, bias=bias), nn.ReLU(inplace=True))
    to_low_rank(net, 4, keep_last=False)
    plain = nn.Conv2d(3, 16, 3, bias=bias)
    plain.load_state_dict(
        {"weight": net[0].weight.detach(), **dict(net[0].named_parameters())}, strict=False
    )
    x = normal(2, 3, 9, 9).float()
    torch.testing.assert_close(net(x), plain(x).relu())
    LowRankIntegrator(net, torch.optim.SGD(net.parameters(), 0.1))
    y = net[0](x)
    y += 1
    y.sum().backward()


@pytest.mark.parametrize("groups", [1, 2])
def test_an_empty_batch_passes_through_a_convolution(groups):
    layer = LowRankConv2d.from_dense(nn.Conv2d(4, 6, 3, groups=groups), 2)
    LowRankIntegrator(layer, torch.optim.SGD(layer.parameters(), 0.1))
    x = torch.zeros(0, 4, 8, 8, requires_grad=True)
    y = layer(x)
    assert y.shape == (0, 6, 6, 6)
    y.sum().backward()
    assert float(layer.S.grad.abs().sum()) == 0


def test_a_warm_up_that_diverged_is_named_and_changes_nothing(normal):
    net = mlp()
    to_low_rank(net, dense=True, keep_last=False)
    switch = CuttlefishSwitch(net)
    schedule = OialrSchedule(net, torch.optim.SGD(net.parameters(), 0.01), delay=1)
    net[2].S.data[0, 0] = float("inf")
    for call in (switch.observe, switch.apply, schedule.step):
        with pytest.raises(InvalidInputError, match="'2'"):
            call()
    assert net[0].is_dense
