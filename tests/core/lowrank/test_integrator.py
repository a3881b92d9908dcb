"""The integrator's promises: ranks, phases, bad gradients, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import LowRankIntegrator, LowRankLinear
from stiefel.lowrank.bases import complement, complements


def network(generator, rank=4, sizes=(12, 16, 10)):
    return nn.Sequential(
        LowRankLinear(sizes[0], sizes[1], rank, generator=generator),
        nn.Tanh(),
        LowRankLinear(sizes[1], sizes[2], rank, generator=generator),
    )


def backward(net, generator, rows=32):
    x = torch.randn(rows, 12, generator=generator)
    loss = (net(x) - torch.sin(3 * x[:, :10])).square().mean()
    loss.backward()
    return loss


def run(net, integrator, generator, steps, rows=32):
    for _ in range(steps):
        integrator.zero_grad()
        # The loss of the step before is still alive here, as in most training loops.
        loss = backward(net, generator, rows)
        integrator.step()
    return float(loss.detach())


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, nesterov=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("phase", [1, 3])
def test_state_of_any_optimizer_follows_the_bases(generator, name, phase):
    net = network(generator)
    optimizer = OPTIMIZERS[name](net.parameters())
    integrator = LowRankIntegrator(net, optimizer, phase=phase, tolerance=0.05)
    first = run(net, integrator, generator, 1)
    last = run(net, integrator, generator, 60)
    assert last < first
    for member in integrator.members:
        state = optimizer.state[member.layer.S]
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.ndim == 2:
                assert value.shape == member.layer.S.shape, key
                if "sq" in key or key == "square_avg":
                    assert (value >= 0).all(), key


def test_ranks_adapt_within_bounds_and_freeze(generator):
    net = network(generator, rank=8)
    integrator = LowRankIntegrator(
        net,
        torch.optim.AdamW(net.parameters(), lr=1e-2),
        tolerance=0.5,
        min_rank=3,
        max_rank=9,
        phase=2,
    )
    run(net, integrator, generator, 20)
    assert all(3 <= rank < 8 for rank in integrator.ranks.values())
    integrator.freeze_ranks()
    integrator.set_tolerance(0.0)
    before = integrator.ranks
    run(net, integrator, generator, 7)
    integrator.finish()
    assert integrator.ranks == before == {n: m.rank for n, m in (("0", net[0]), ("2", net[2]))}


def test_absolute_tolerance_bounds_what_is_lost(generator):
    net = network(generator, rank=6)
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), lr=0.01), tolerance=0.2, relative=False, phase=3
    )
    run(net, integrator, generator, 2)
    before = net[0].weight.detach()
    integrator.finish()
    assert torch.linalg.norm(net[0].weight.detach() - before) <= 0.2 + 1e-6


def test_growth_never_lowers_a_rank(generator):
    net = network(generator, rank=2)
    integrator = LowRankIntegrator(
        net,
        torch.optim.AdamW(net.parameters(), lr=2e-2),
        tolerance=0.01,
        grow_only=True,
        min_rank=1,
        phase=2,
    )
    seen = [integrator.ranks["0"]]
    for _ in range(20):
        run(net, integrator, generator, 2)
        seen.append(integrator.ranks["0"])
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_growth_keeps_the_bounds(generator):
    net = network(generator, rank=4)
    options = {"tolerance": 0.9, "grow_only": True, "phase": 1}
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(net, optimizer, min_rank=6, **options)
    run(net, integrator, generator, 1)
    assert integrator.ranks["0"] == 6
    integrator = LowRankIntegrator(net, optimizer, max_rank=3, **options)
    run(net, integrator, generator, 1)
    assert integrator.ranks["0"] == 3


def test_frozen_bases_train_the_core_alone(generator):
    net = network(generator)
    integrator = LowRankIntegrator(net, torch.optim.AdamW(net.parameters(), lr=1e-2), phase=3)
    run(net, integrator, generator, 4)
    integrator.freeze_bases()
    bases, core = net[0].U.clone(), net[0].S.detach().clone()
    run(net, integrator, generator, 5)
    assert torch.equal(net[0].U, bases)
    assert not torch.equal(net[0].S, core)


@pytest.mark.parametrize("position", [0, 1])
def test_a_non_finite_gradient_skips_the_layer_and_is_reported(generator, position):
    net = network(generator)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    integrator = LowRankIntegrator(net, optimizer, phase=3)
    run(net, integrator, generator, 3 + position)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    integrator.zero_grad()
    net(torch.full((4, 12), torch.nan)).sum().backward()
    report = integrator.step()
    # The head's bias never met the input, and its gradient is finite; its layer rests all the same.
    assert report.skipped == ("0.S", "0.bias", "2.S", "2.bias")
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    run(net, integrator, generator, 4)
    assert all(bool(v.isfinite().all()) for v in net.state_dict().values())


def test_one_bad_layer_does_not_stop_the_others(generator):
    net = network(generator)
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
    integrator.zero_grad()
    backward(net, generator)
    net[0].tape.grad_k[0, 0] = torch.inf
    before = net[0].S.detach().clone(), net[2].S.detach().clone()
    assert integrator.step().skipped == ("0.S", "0.bias")
    assert torch.equal(net[0].S, before[0])
    assert not torch.equal(net[2].weight, before[1])


def test_batch_smaller_than_the_rank(generator):
    net = network(generator, rank=6)
    integrator = LowRankIntegrator(net, torch.optim.AdamW(net.parameters(), lr=1e-2), phase=2)
    run(net, integrator, generator, 30, rows=2)
    for basis in (net[0].U, net[0].V, net[2].U, net[2].V):
        eye = torch.eye(basis.shape[1])
        torch.testing.assert_close(basis.mT @ basis, eye, atol=1e-5, rtol=0)


def test_zero_core_keeps_its_rank_and_starts_moving(generator):
    net = network(generator)
    with torch.no_grad():
        net[2].S.zero_()
        net[2].bias.zero_()
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.0), phase=1)
    run(net, integrator, generator, 1)
    assert integrator.ranks["2"] == 4
    integrator = LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), phase=1)
    run(net, integrator, generator, 2)
    assert net[2].S.detach().norm() > 0


@pytest.mark.parametrize("sizes", [(12, 1, 10), (12, 40, 10)])
def test_rank_one_and_extreme_shapes(generator, sizes):
    net = network(generator, rank=1, sizes=sizes)
    integrator = LowRankIntegrator(
        net, torch.optim.SGD(net.parameters(), lr=0.05), tolerance=0.0, phase=1
    )
    run(net, integrator, generator, 5)
    assert integrator.ranks["0"] == min(sizes[0], sizes[1])


def test_frozen_and_unused_layers_are_left_alone(generator):
    net = network(generator)
    net[0].S.requires_grad_(False)
    extra = LowRankLinear(5, 4, 2, generator=generator)
    net.register_module("spare", extra)
    chain = nn.Sequential(net[0], net[1], net[2])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    integrator = LowRankIntegrator(net, optimizer, phase=2)
    assert list(integrator.ranks) == ["2", "spare"]
    before = net[0].weight.clone(), extra.weight.clone()
    for _ in range(4):
        integrator.zero_grad()
        backward(chain, generator)
        integrator.step()
    assert torch.equal(net[0].weight, before[0])
    torch.testing.assert_close(extra.weight, before[1])


def test_refusals_name_the_layer_and_the_remedy(generator):
    net = network(generator)
    with pytest.raises(InvalidInputError, match="'0'") as caught:
        LowRankIntegrator(net, torch.optim.SGD(net[2].parameters(), lr=0.1))
    assert caught.value.code == "core_not_in_optimizer"
    dense = nn.Linear(2, 2)
    with pytest.raises(InvalidInputError) as caught:
        LowRankIntegrator(dense, torch.optim.SGD(dense.parameters(), lr=0.1))
    assert caught.value.code == "no_low_rank_layer"
    twin = LowRankLinear(12, 16, 4, generator=generator)
    twin.S = net[0].S
    pair = nn.ModuleList([net[0], twin])
    with pytest.raises(InvalidInputError) as caught:
        LowRankIntegrator(pair, torch.optim.SGD(pair.parameters(), lr=0.1))
    assert caught.value.code == "tied_core"
    for wrong in ({"tolerance": -1.0}, {"phase": 0}, {"min_rank": 5, "max_rank": 3}):
        with pytest.raises(InvalidInputError):
            LowRankIntegrator(net, torch.optim.SGD(net.parameters(), lr=0.1), **wrong)


@pytest.mark.parametrize("algorithm", ["householder", "cholesky"])
@pytest.mark.parametrize("kind", ["full", "deficient", "zero", "inside", "wide"])
def test_complement_is_orthonormal_whatever_the_block(normal, algorithm, kind):
    basis = torch.linalg.qr(normal(20, 6)).Q
    block = {
        "full": normal(20, 6),
        "deficient": normal(20, 2) @ normal(2, 6),
        "zero": torch.zeros(20, 6, dtype=torch.float64),
        "inside": basis @ normal(6, 6),
        "wide": normal(20, 30),
    }[kind]
    new = complement(basis, block, algorithm=algorithm)
    both = torch.cat((basis, new), 1)
    assert new.shape[1] == min(block.shape[1], 14)
    torch.testing.assert_close(
        both.mT @ both, torch.eye(both.shape[1], dtype=both.dtype), atol=1e-12, rtol=0
    )
    if kind in ("full", "deficient"):
        torch.testing.assert_close(both @ (both.mT @ block), block)


@pytest.mark.parametrize("kind", [torch.optim.Adadelta, torch.optim.Rprop, torch.optim.LBFGS])
def test_an_optimizer_whose_state_cannot_turn_is_refused(generator, kind):
    net = network(generator)
    with pytest.raises(InvalidInputError, match=kind.__name__):
        LowRankIntegrator(net, kind(net.parameters()))


@pytest.mark.parametrize("options", [{"phase": 2.5}, {"max_rank": -3}, {"min_rank": 0}])
def test_settings_without_sense_are_refused(generator, options):
    net = network(generator)
    with pytest.raises(InvalidInputError):
        LowRankIntegrator(net, torch.optim.SGD(net.parameters()), **options)


@pytest.mark.parametrize("rank", [4, 20])
def test_new_directions_do_not_depend_on_the_company(normal, rank):
    """Stacked blocks of one shape, one of them rank deficient, one of another shape."""
    bases = [torch.linalg.qr(normal(60, rank)).Q for _ in range(5)]
    bases.append(torch.linalg.qr(normal(50, rank)).Q)
    blocks = [normal(len(basis), rank) for basis in bases]
    for healthy in (True, False):
        if not healthy:
            blocks[2] = normal(60, 1) @ normal(1, rank)
        together = complements(bases, blocks)
        for basis, block, new in zip(bases, blocks, together, strict=True):
            both = torch.cat((basis, new), 1)
            torch.testing.assert_close(both.mT @ both, torch.eye(2 * rank, dtype=both.dtype))
            torch.testing.assert_close(both @ (both.mT @ block), block)
        if healthy:
            alone = [complement(*pair) for pair in zip(bases, blocks, strict=True)]
            torch.testing.assert_close(together, alone)
