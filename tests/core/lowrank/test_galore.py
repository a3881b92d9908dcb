from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.galore import GaLoreAdamW


def problem(generator):
    net = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 12))
    x = torch.randn(64, 20, generator=generator)
    return net, x, torch.sin(x[:, :12])


def train(net, optimizer, x, y, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("energy", [None, 0.9])
def test_it_trains_with_states_of_the_subspace(generator, energy):
    net, x, y = problem(generator)
    optimizer = GaLoreAdamW(net.parameters(), rank=6, period=20, energy=energy, lr=1e-2)
    losses = train(net, optimizer, x, y, 200)
    assert losses[-1] < 0.3 * losses[0]
    first, second = (optimizer.state[net[i].weight] for i in (0, 2))
    assert first["basis"].shape[0] == 20
    assert second["basis"].shape[0] == 12
    assert first["exp_avg"].shape == (first["basis"].shape[1], 30)
    assert first["basis"].shape[1] <= 6
    assert (first["exp_avg_sq"] >= 0).all()
    eye = torch.eye(first["basis"].shape[1])
    torch.testing.assert_close(first["basis"].T @ first["basis"], eye, atol=1e-5, rtol=0)


def test_directions_without_history_take_no_longer_steps_than_others():
    weight = nn.Parameter(torch.zeros(6, 8))
    optimizer = GaLoreAdamW([weight], rank=2, period=40, lr=1.0)
    columns = torch.linspace(1, 2, 8)
    for step in range(60):
        before = weight.detach().clone()
        weight.grad = torch.zeros(6, 8)  # after 40 steps the gradient leaves the subspace
        weight.grad[slice(0, 2) if step < 40 else slice(3, 5)] = torch.stack((columns, -columns))
        weight.grad[:, :4] *= 2
        optimizer.step()
        moved = (weight.detach() - before).square().sum(0).sqrt()
        assert float(moved.max()) < 1.5  # Adam's own: a step per direction


def test_what_is_no_large_matrix_gets_adamw(generator):
    net, x, y = problem(generator)
    twin = copy.deepcopy(net)
    train(net, GaLoreAdamW(net.parameters(), rank=99, weight_decay=0.1), x, y, 5)
    train(twin, torch.optim.AdamW(twin.parameters(), lr=1e-3, weight_decay=0.1), x, y, 5)
    for p, q in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_an_update_lies_in_the_subspace_and_resumes(generator):
    net, x, y = problem(generator)
    optimizer = GaLoreAdamW(net.parameters(), rank=3, period=50)
    before = net[2].weight.detach().clone()
    train(net, optimizer, x, y, 10)
    assert torch.linalg.matrix_rank(net[2].weight.detach() - before, rtol=1e-4) == 3
    again, other = copy.deepcopy(net), None
    other = GaLoreAdamW(again.parameters(), rank=3, period=50)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert train(net, optimizer, x, y, 50) == train(again, other, x, y, 50)


def test_bad_options_are_refused(generator):
    net, _, _ = problem(generator)
    for wrong in ({"rank": 0}, {"period": 0}, {"energy": 1.5}):
        with pytest.raises(InvalidInputError):
            GaLoreAdamW(net.parameters(), **wrong)
    with pytest.raises(InvalidInputError, match="complex"):
        GaLoreAdamW([nn.Parameter(torch.zeros(3, 3, dtype=torch.complex64))])


def test_a_gradient_that_is_not_finite_leaves_its_parameter_alone(generator):
    net, x, y = problem(generator)
    optimizer = GaLoreAdamW(net.parameters(), rank=4, period=2)
    train(net, optimizer, x, y, 4)
    weight, bias = net[0].weight.detach().clone(), net[2].bias.detach().clone()
    state = copy.deepcopy(optimizer.state[net[0].weight])
    (net(x) - y).square().mean().backward()
    net[0].weight.grad[0, 0] = torch.inf
    optimizer.step()
    assert torch.equal(net[0].weight, weight)
    assert not torch.equal(net[2].bias, bias)
    assert optimizer.skipped_steps() == 1
    for name, value in optimizer.state[net[0].weight].items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(state[name]))


def test_a_copied_optimizer_counts_on(generator):
    net, *_ = problem(generator)
    optimizer = copy.deepcopy(GaLoreAdamW(net.parameters(), rank=4))
    assert optimizer.skipped_steps() == 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.step()
    assert optimizer.skipped_steps() == len(list(net.parameters()))


@pytest.mark.parametrize("energy", [None, 0.9])
def test_a_gradient_of_zeros_chooses_no_subspace(generator, energy):
    """The layer behind a zero one sees its first gradient a step later."""
    net, x, y = problem(generator)
    nn.init.zeros_(net[2].weight)
    optimizer = GaLoreAdamW(net.parameters(), rank=4, period=100, energy=energy, lr=1e-2)
    train(net, optimizer, x, y, 3)
    net(x).sub(y).square().mean().backward()
    gradient = net[0].weight.grad.T  # 20 x 30, as it is projected
    held = optimizer.state[net[0].weight]["basis"].T @ gradient
    assert held.square().sum() > 0.5 * gradient.square().sum()


def test_a_sparse_gradient_is_refused():
    net = nn.Embedding(30, 20, sparse=True)
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InvalidInputError, match="sparse"):
        GaLoreAdamW(net.parameters(), rank=4).step()
