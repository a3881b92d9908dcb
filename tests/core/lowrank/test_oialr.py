"""OIALR: the transition, the tests, the rotated moments, and replicas in two processes."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import (
    CuttlefishSwitch,
    LowRankConv2d,
    LowRankIntegrator,
    LowRankLinear,
    LowRankMultiheadAttention,
    OialrSchedule,
    enter_factors,
    to_low_rank,
    trainable_share,
)


def network(dense=True):
    net = nn.Sequential(
        nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / 4)
    return to_low_rank(net, dense=dense, evaluation="auto").model if dense else net


def backward(net, generator):
    x = torch.randn(32, 12, generator=generator)
    nn.functional.cross_entropy(net(x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()).backward()


def run(net, schedule, generator, steps):
    reports = []
    for _ in range(steps):
        net.zero_grad()
        backward(net, generator)
        reports.append(schedule.step())
    return reports


def test_dense_warm_up_is_ordinary_training():
    warm, plain = network(), network(dense=False)
    schedule = OialrSchedule(warm, torch.optim.AdamW(warm.parameters(), lr=1e-2), delay=100)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2)
    run(warm, schedule, torch.Generator().manual_seed(0), 5)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        plain.zero_grad()
        backward(plain, generator)
        optimizer.step()
    torch.testing.assert_close(warm[0].weight, plain[0].weight)
    torch.testing.assert_close(warm[4].weight, plain[4].weight)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_transition_changes_the_form_and_nothing_else(generator, make):
    net = network().double()
    options = {"lr": 1e-2} | ({"momentum": 0.9} if make is torch.optim.SGD else {})
    optimizer = make(net.parameters(), **options)
    schedule = OialrSchedule(net, optimizer, delay=4, period=100)
    x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    core = net[0].S
    for turn in range(4):
        net.zero_grad()
        net(x).square().sum().backward()
        if turn == 3:
            twin = copy.deepcopy(net)
            other = make(twin.parameters(), **options)
            other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                q.grad = p.grad.clone()
            other.step()
        converted = schedule.step().converted
    assert converted
    assert net[0].S is core
    assert schedule.ranks == {"0": 12, "2": 16}
    torch.testing.assert_close(net[0].weight, twin[0].weight)
    key = "exp_avg" if make is torch.optim.AdamW else "momentum_buffer"
    moment = net[0].U @ optimizer.state[core][key] @ net[0].V.mT
    # The moment keeps what lies in the bases: here all of it along the smaller side.
    whole = other.state[twin[0].S][key]
    torch.testing.assert_close(moment, net[0].U @ net[0].U.mT @ whole @ net[0].V @ net[0].V.mT)
    if make is torch.optim.AdamW:
        assert (optimizer.state[core]["exp_avg_sq"] >= 0).all()


def test_core_gradient_is_the_projected_dense_gradient(generator):
    net = network().double()
    enter_factors(net[0], rank=5)
    x = torch.randn(8, 12, generator=generator, dtype=torch.float64)
    net(x).square().sum().backward()
    dense = net[0].weight.detach().requires_grad_()
    bias = net[0].bias.detach()
    y = net[1:](nn.functional.linear(x, dense, bias))
    y.square().sum().backward()
    torch.testing.assert_close(net[0].S.grad, net[0].U.mT @ dense.grad @ net[0].V)


def test_a_test_without_a_drop_changes_no_output(generator):
    net = network()
    schedule = OialrSchedule(
        net,
        torch.optim.AdamW(net.parameters(), lr=1e-2),
        delay=1,
        period=100,
        cutoff=0.0,
        share=1.0,
    )
    run(net, schedule, generator, 6)
    x = torch.randn(8, 12, generator=generator)
    before = net(x)
    results = schedule.test()
    torch.testing.assert_close(net(x), before, atol=1e-5, rtol=0)
    assert [t.before for t in results] == [t.after for t in results] == [12, 16]
    assert all(-1 <= t.stability <= 1 + 1e-6 for t in results)


def test_a_step_inside_autocast_keeps_float32_factors(generator):
    net = network()
    schedule = OialrSchedule(net, torch.optim.AdamW(net.parameters()), delay=1, period=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(net, schedule, generator, 2)
    for member in schedule.members:
        basis = member.layer.U
        assert basis.dtype == member.layer.S.dtype == torch.float32
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]))


def test_reduction_is_monotone_bounded_and_keeps_the_span(generator):
    net = network()
    schedule = OialrSchedule(
        net, torch.optim.AdamW(net.parameters(), lr=2e-2), delay=3, period=5, cutoff=0.6, share=1.0
    )
    for report in run(net, schedule, generator, 40):
        for test in report.tests:
            assert test.after <= test.before
            assert 2 * test.after >= test.before
    assert schedule.ranks["2"] < 16
    old, new = net[2].U.clone(), None
    schedule.test()
    new = net[2].U
    torch.testing.assert_close(old @ (old.mT @ new), new, atol=1e-5, rtol=0)
    state = schedule.optimizer.state[net[2].S]
    assert state["exp_avg"].shape == state["exp_avg_sq"].shape == net[2].S.shape


def test_stability_is_the_mean_cosine_of_the_basis_columns(generator):
    net = network().double()
    schedule = OialrSchedule(
        net, torch.optim.SGD(net.parameters(), lr=0.3), delay=1, period=100, cutoff=0.0, share=1.0
    )
    run_double = torch.randn(32, 12, generator=generator, dtype=torch.float64)
    for _ in range(5):
        net.zero_grad()
        net(run_double).square().sum().mul(0.01).backward()
        schedule.step()
    before = [net[i].U @ net[i].V.mT for i in (0, 2)]
    results = schedule.test()
    for i, old, result in zip((0, 2), before, results, strict=True):
        new = net[i].U @ net[i].V.mT
        want = nn.functional.cosine_similarity(old, new, dim=0).mean()
        assert result.stability == pytest.approx(float(want), abs=1e-9)


def test_layers_near_the_output_are_tested_first_and_rest(generator):
    net = network()
    schedule = OialrSchedule(
        net,
        torch.optim.SGD(net.parameters(), lr=0.01),
        delay=1,
        period=2,
        cutoff=0.9,
        share=0.5,
        rest=1,
    )
    reports = [[t.layer for t in r.tests] for r in run(net, schedule, generator, 7)]
    assert [r for r in reports if r] == [["2"], ["0"], ["2"]]


def test_schedule_resumes(generator):
    net = network()
    schedule = OialrSchedule(net, torch.optim.AdamW(net.parameters(), lr=1e-2), delay=2, period=2)
    run(net, schedule, generator, 5)
    again = network()
    again.load_state_dict(net.state_dict())
    second = OialrSchedule(again, torch.optim.AdamW(again.parameters(), lr=1e-2), delay=2, period=2)
    second.load_state_dict(schedule.state_dict())
    assert second.ranks == schedule.ranks
    assert (second.count, second.tests) == (schedule.count, schedule.tests)
    with pytest.raises(InvalidInputError):
        OialrSchedule(net, schedule.optimizer, period=0)


ATTENTION = {
    "plain": ({}, {}),
    "batch_first": ({"batch_first": True}, {}),
    "other_widths": ({"kdim": 6, "vdim": 10, "batch_first": True}, {}),
    "unbiased": ({"bias": False, "batch_first": True}, {}),
    "lean": ({"batch_first": True}, {"need_weights": False}),
    "per_head": ({}, {"average_attn_weights": False}),
}


@pytest.mark.parametrize("case", ATTENTION)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_equals_the_dense_one(generator, case, masked):
    options, call = ATTENTION[case]
    dense = nn.MultiheadAttention(8, 2, **options).double().eval()
    layer = LowRankMultiheadAttention.from_dense(dense, 99)
    batch_first = options.get("batch_first", False)
    q, k, v = (
        torch.randn(*((3, n, w) if batch_first else (n, 3, w)), generator=generator).double()
        for n, w in ((5, 8), (7, options.get("kdim", 8)), (7, options.get("vdim", 8)))
    )
    if masked:
        padding = torch.zeros(3, 7, dtype=torch.bool)
        padding[1, 4:] = True
        call = {**call, "key_padding_mask": padding, "attn_mask": torch.ones(5, 7).tril(3) == 0}
    got, weights = layer(q, k, v, **call)
    want, want_weights = dense(q, k, v, **call)
    torch.testing.assert_close(got, want)
    if want_weights is not None:
        torch.testing.assert_close(weights, want_weights)


def test_transformer_encoder_layers_and_convolutions_train(generator):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 2, stride=2)
            self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.block(self.patch(x).flatten(2).mT).mean(1))

    net = to_low_rank(Net(), dense=True, evaluation="auto").model
    assert isinstance(net.patch, LowRankConv2d)
    assert isinstance(net.block.self_attn.in_proj, LowRankLinear)
    dense_count = sum(p.numel() for p in net.parameters())
    schedule = OialrSchedule(
        net, torch.optim.AdamW(net.parameters(), lr=5e-3), delay=3, period=3, cutoff=0.4, share=1.0
    )
    x = torch.randn(24, 3, 8, 8, generator=generator)
    y = torch.randint(0, 3, (24,), generator=generator)
    losses = []
    for _ in range(60):
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        schedule.step()
        losses.append(loss.detach())
    assert losses[-1] < 0.5 * losses[0]
    assert trainable_share(net, dense_count) < 0.7
    # Inference takes torch's fast path where it may, through the merged ``weight``.
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x), net.train()(x), atol=1e-5, rtol=1e-4)


def test_cuttlefish_switches_when_ranks_settle_and_training_goes_on(generator):
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=5e-3)
    switch = CuttlefishSwitch(net, window=2, slope=0.5)
    schedule = LowRankIntegrator(net, optimizer, phase=2)
    for epoch in range(100):
        run(net, schedule, generator, 5)
        if epoch > 2:
            for group in optimizer.param_groups:
                group["lr"] = 1e-5
        if switch.observe():
            break
    ranks = switch.apply(optimizer)
    assert ranks == {"0": net[0].rank, "2": net[2].rank}
    assert not net[0].is_dense
    run(net, LowRankIntegrator(net, optimizer, phase=2), generator, 6)
    with pytest.raises(InvalidInputError, match="dense"):
        CuttlefishSwitch(net)
    with pytest.raises(InvalidInputError, match="factored already"):
        enter_factors(net[0])


def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    """Replicas hold the same bits after every step, under one DDP wrapper, and follow one process
    with the whole batch."""
    script = Path(__file__).with_name("two_processes.py")
    subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], check=True, timeout=240
    )
    assert sorted(path.name for path in tmp_path.glob("agreed-*")) == [
        "agreed-branches",
        "agreed-dlrt",
        "agreed-oialr",
    ]
