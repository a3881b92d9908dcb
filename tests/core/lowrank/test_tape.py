"""What backward passes leave for the bases: it lives and dies with the gradient of the core."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from stiefel.errors import InvalidInputError
from stiefel.lowrank import LowRankIntegrator, LowRankLinear, to_low_rank


def network(generator):
    return nn.Sequential(
        LowRankLinear(12, 16, 4, generator=generator),
        nn.Tanh(),
        LowRankLinear(16, 10, 4, generator=generator),
    )


def test_a_layer_used_twice_adds_its_gradients(generator):
    layer = LowRankLinear(10, 10, 3, generator=generator, dtype=torch.float64)
    net = nn.Sequential(layer, nn.Tanh(), layer)
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
    x = torch.randn(8, 10, generator=generator, dtype=torch.float64)
    net(x).square().sum().backward()
    dense = layer.weight.detach().requires_grad_()
    bias = layer.bias.detach()
    hidden = torch.tanh(nn.functional.linear(x, dense, bias))
    nn.functional.linear(hidden, dense, bias).square().sum().backward()
    torch.testing.assert_close(layer.tape.grad_k, dense.grad @ layer.V)
    integrator.step()


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("within", ["first", "middle", "last", "all"])
def test_checkpointed_uses_add_up_with_the_others(generator, reentrant, within):
    layer = LowRankLinear(10, 10, 3, generator=generator, dtype=torch.float64)
    integrator = LowRankIntegrator(layer, torch.optim.SGD(layer.parameters(), lr=0.1), phase=1)
    x = torch.randn(8, 10, generator=generator, dtype=torch.float64, requires_grad=True)

    def used_thrice(apply):
        y = x
        for place in ("first", "middle", "last"):
            wrapped = within in (place, "all")
            y = checkpoint(apply, y, use_reentrant=reentrant) if wrapped else apply(y)
        return y.square().sum()

    used_thrice(lambda y: torch.tanh(layer(y))).backward()
    dense, bias = layer.weight.detach().requires_grad_(), layer.bias.detach()
    used_thrice(lambda y: torch.tanh(nn.functional.linear(y, dense, bias))).backward()
    torch.testing.assert_close(layer.tape.grad_k, dense.grad @ layer.V)
    assert len(layer.tape.pairs) == 3
    integrator.step()


def test_a_pass_that_failed_leaves_nothing_behind(generator):
    net = network(generator)
    twin = copy.deepcopy(net)
    x = torch.randn(32, 12, generator=generator)

    def fail(_):
        raise RuntimeError("on the way back")

    for model, fails in ((net, True), (twin, False)):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        integrator = LowRankIntegrator(model, optimizer, phase=1)
        if fails:
            hidden = torch.tanh(model[0](x))
            hidden.register_hook(fail)
            with pytest.raises(RuntimeError, match="on the way back"):
                model[2](hidden).square().sum().backward()
            optimizer.zero_grad()
        model(x).square().sum().backward()
        integrator.step()
    assert torch.equal(net[2].weight, twin[2].weight)


def test_a_pass_that_was_given_up_leaves_nothing_behind(generator):
    net = network(generator)
    twin = copy.deepcopy(net)
    data = torch.randn(2, 32, 12, generator=generator)
    for model, batches in ((net, data), (twin, data[1:])):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        integrator = LowRankIntegrator(model, optimizer, phase=1)
        for x in batches:
            optimizer.zero_grad()  # not the integrator's, which would make new tapes
            model(x).square().sum().backward()
        integrator.step()
    torch.testing.assert_close(net[0].weight, twin[0].weight, rtol=0, atol=0)


def test_passes_that_belong_together_add_up(generator):
    net = network(generator)
    whole = copy.deepcopy(net)
    x = torch.randn(32, 12, generator=generator)
    for model, parts in ((net, x.split(8)), (whole, [x])):
        integrator = LowRankIntegrator(model, torch.optim.SGD(model.parameters(), 0.1), phase=1)
        integrator.optimizer.zero_grad()
        for part in parts:
            model(part).square().sum().backward()
        integrator.step()
    torch.testing.assert_close(net[0].weight, whole[0].weight)


def test_the_bases_turn_in_evaluation_mode_too(generator):
    net = network(generator).eval()
    twin = copy.deepcopy(net).train()
    for model in (net, twin):
        integrator = LowRankIntegrator(model, torch.optim.SGD(model.parameters(), 0.1), phase=1)
        model(torch.ones(8, 12)).square().sum().backward()
        integrator.step()
    assert torch.equal(net[0].weight, twin[0].weight)


def test_a_model_can_be_copied_between_backward_and_step(generator):
    net = network(generator)
    LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1))
    net(torch.randn(8, 12, generator=generator)).square().sum().backward()
    copied = copy.deepcopy(net)
    pickle.loads(pickle.dumps(net))
    for _ in range(3):  # what nobody steps does not pile up
        copied.zero_grad()
        copied(torch.ones(8, 12)).sum().backward()
    assert len(copied[0].tape.pairs) == 1
    assert copied[0].tape.core is copied[0].S


@pytest.mark.parametrize("how", ["clipped", "scaled"])
def test_the_bases_follow_what_is_done_to_the_gradient_of_the_core(generator, how):
    nets = [network(torch.Generator().manual_seed(1)) for _ in range(2)]
    x = torch.randn(32, 12, generator=generator)
    for net, touched in zip(nets, (False, True), strict=True):
        integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1))
        # Multiplied before the backward pass in one, after it in the other.
        (net(x).square().mean() * (1.0 if touched else 1e-3)).backward()
        parameters = list(net.parameters())
        if touched and how == "clipped":
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters])
            torch.nn.utils.clip_grad_norm_(parameters, 1e-3 * float(norm))
        elif touched:
            torch._foreach_mul_([p.grad for p in parameters], 1e-3)
        integrator.step()
    for one, two in zip(*(net.children() for net in nets), strict=True):
        if isinstance(one, LowRankLinear):
            assert torch.allclose(one.weight, two.weight, atol=1e-6)


def convolutions():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 20))
    return to_low_rank(model, 2).model


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
def test_an_input_overwritten_before_the_step_is_told_before_anything_moves(
    generator, kind, passes
):
    net = network(generator) if kind == "linear" else convolutions()
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
    buffer = torch.empty(8, 12) if kind == "linear" else torch.empty(8, 3, 5, 5)
    before = copy.deepcopy(net.state_dict())
    for _ in range(passes):
        buffer.normal_(generator=generator)
        net(buffer).square().sum().backward()
    if passes == 1:
        buffer.zero_()
    assert copy.deepcopy(net)[0].tape.inputs[0].overwritten
    with pytest.raises(InvalidInputError, match="overwritten") as caught:
        integrator.step()
    assert caught.value.code == "overwritten_input"
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    integrator.zero_grad()
    net(buffer).square().sum().backward()
    integrator.step()


def test_an_input_that_may_be_overwritten(generator):
    """Where no corner is asked for, the pass was given up, or the input is a Parameter."""
    net = network(generator)
    buffer = torch.randn(8, 12, generator=generator)
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1, variant="parallel"
    )
    net(buffer).square().sum().backward()
    buffer.zero_()
    integrator.step()
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
    net(buffer).square().sum().backward()
    integrator.optimizer.zero_grad()
    buffer.normal_(generator=generator)
    integrator.step()
    net(buffer).square().sum().backward()
    integrator.step()


def test_an_input_that_is_a_parameter_may_be_stepped_first(generator):
    nets = [network(generator)]
    nets.append(copy.deepcopy(nets[0]))
    start = torch.randn(8, 12, generator=generator)
    for net, first in zip(nets, (True, False), strict=True):
        x = nn.Parameter(start.clone())
        integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
        net(x).square().sum().backward()
        steps = [torch.optim.SGD([x], lr=0.5).step, integrator.step]
        for step in steps if first else steps[::-1]:
            step()
    assert torch.equal(nets[0][0].weight, nets[1][0].weight)


def test_a_copy_of_a_model_counts_the_versions_of_its_inputs_anew(generator):
    net = network(generator)
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
    buffer = torch.empty(8, 12).normal_(generator=generator).mul_(2)
    net(buffer).square().sum().backward()
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied[0].tape.sum_k, net[0].tape.grad_k)
        assert not any(kept.overwritten for kept in copied[0].tape.inputs)
        assert copied[0].tape.inputs[0].tensor is copied[0].tape.pairs[0][0]
    integrator.step()
