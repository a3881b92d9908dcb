"""Low-rank training and conversion on a GPU against the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from stiefel.lowrank import (
    GaLoreAdamW,
    LowRankIntegrator,
    OialrSchedule,
    export,
    merge,
    to_low_rank,
)

DATA = torch.Generator().manual_seed(3)
IMAGES = torch.randn(32, 3, 8, 8, generator=DATA)
LABELS = torch.randint(0, 4, (32,), generator=DATA)


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, groups=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 40),
            nn.Tanh(),
            nn.Linear(40, 4),
        )


def losses(net: nn.Module, place: Any, optimizer: Any, after: Any, steps: int) -> list[float]:
    found, x, y = [], IMAGES.to(place), LABELS.to(place)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        after()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("variant", ["phased", "exact", "parallel"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_dlrt_trains_as_on_the_cpu(variant: Any, kind: Any, device: torch.device) -> None:
    curves, ranks = [], []
    for place in ("cpu", device):
        net = to_low_rank(network(), rank=4).model.to(place)
        optimizer = kind(net.parameters(), lr=1e-2)
        integrator = LowRankIntegrator(
            net,
            optimizer,
            variant="parallel" if variant == "parallel" else "exact",
            tolerance=0.1,
            phase=3 if variant == "phased" else 1,
        )
        curves.append(losses(net, place, integrator, integrator.step, 10))
        ranks.append([member.layer.rank for member in integrator.members])
    assert curves[1] == pytest.approx(curves[0], rel=2e-2)
    assert curves[1][:2] == pytest.approx(curves[0][:2], rel=1e-3)
    assert ranks[0] == ranks[1]


def test_oialr_trains_as_on_the_cpu(device: torch.device) -> None:
    curves, ranks = [], []
    for place in ("cpu", device):
        net = to_low_rank(network(), dense=True, evaluation="auto").model.to(place)
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
        schedule = OialrSchedule(net, optimizer, delay=4, period=4, cutoff=0.3, share=1.0)
        curves.append(losses(net, place, optimizer, schedule.step, 16))
        ranks.append(schedule.ranks)
    assert curves[1] == pytest.approx(curves[0], rel=3e-2)
    assert ranks[0] == ranks[1]
    with torch.no_grad():
        want = net(IMAGES.to(device))
        found = merge(net)(IMAGES.to(device))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


def test_factors_are_exported_from_the_device(device: torch.device) -> None:
    net = to_low_rank(network(), rank=4).model.to(device)
    with torch.no_grad():
        want = net(IMAGES.to(device))
        assert export(net, example=(IMAGES.to(device),))
        found = net(IMAGES.to(device))
    torch.testing.assert_close(found, want, rtol=1e-3, atol=1e-4)


def test_galore_trains(device: torch.device) -> None:
    net = network().to(device)
    optimizer = GaLoreAdamW(net.parameters(), lr=3e-3, rank=4)
    curve = losses(net, device, optimizer, optimizer.step, 12)
    assert curve[-1] < curve[0]


def test_a_step_holds_no_dense_copy_of_a_layer(gpu: torch.device) -> None:
    dense = nn.Sequential(nn.Linear(4096, 4096, bias=False), nn.Linear(4096, 8))
    net = to_low_rank(dense, rank=8).model.to(gpu)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(net, optimizer, tolerance=0.1)
    x = torch.randn(16, 4096, device=gpu)
    for _ in range(2):
        integrator.zero_grad()
        net(x).square().mean().backward()
        integrator.step()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(12):
        integrator.zero_grad()
        net(x).square().mean().backward()
        integrator.step()
    # A quarter of the dense weight's bytes; factors and activations are a twentieth.
    assert torch.cuda.max_memory_allocated() - before < 4096 * 4096
