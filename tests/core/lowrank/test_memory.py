"""No step forms a matrix of the dense weight's size, and live memory follows the factors."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stiefel.lowrank import LowRankConv2d, LowRankIntegrator, LowRankLinear


class NoDenseMatrix(TorchDispatchMode):
    """Fails on any tensor with as many elements as the dense weight."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                assert leaf.numel() < self.limit, f"{func} made {tuple(leaf.shape)}"
        return out


class LiveBytes(TorchDispatchMode):
    """Peak bytes of the storages that operations create and that are still alive."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.track(leaf)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out

    def track(self, tensor):
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)


def steps(net, integrator, x, count):
    for _ in range(count):
        integrator.zero_grad()
        net(x).square().mean().backward()
        integrator.step()


def layer_memory(n, m, rank, rows=8):
    """Peak bytes of a layer in training, activations aside, and of 2 (2r) (n + m) + 3 (2r)^2."""
    generator = torch.Generator().manual_seed(0)
    layer = LowRankLinear(m, n, rank, generator=generator)
    net = nn.Sequential(layer)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(net, optimizer, phase=3, min_rank=rank, max_rank=rank)
    x = torch.randn(rows, m, generator=generator)
    steps(net, integrator, x, 3)
    live = LiveBytes()
    for tensor in (layer.U, layer.V, layer.S, layer.bias):
        live.track(tensor)
    for parameter in net.parameters():
        for value in optimizer.state[parameter].values():
            live.track(value)
    with live:
        steps(net, integrator, x, 6)
    # Input and output rows, their gradients, loss intermediates; the bias with its state.
    activations = 4 * rows * (4 * n + 2 * m + 8 * rank) + 4 * 8 * n
    return live.peak - activations, 4 * (2 * 2 * rank * (n + m) + 3 * (2 * rank) ** 2)


@pytest.mark.parametrize("variant", ["exact", "parallel"])
@pytest.mark.parametrize("phase", [1, 3])
def test_no_dense_matrix_in_any_step(generator, variant, phase):
    n, m, rank, rows = 160, 200, 4, 16
    net = nn.Sequential(LowRankLinear(m, n, rank, generator=generator), nn.ReLU())
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(net, optimizer, phase=phase, variant=variant, max_rank=6)
    x = torch.randn(rows, m, generator=generator)
    with NoDenseMatrix(n * m):
        steps(net, integrator, x, 2 * phase + 1)


def test_no_dense_matrix_in_a_convolution_step(generator):
    net = nn.Sequential(LowRankConv2d.from_dense(nn.Conv2d(32, 64, 3, padding=1), 3))
    integrator = LowRankIntegrator(net, torch.optim.AdamW(net.parameters()), phase=2, max_rank=4)
    x = torch.randn(2, 32, 5, 5, generator=generator)
    with NoDenseMatrix(32 * 9 * 64):
        steps(net, integrator, x, 5)


def test_live_memory_of_a_layer_stays_within_its_factors():
    """At most 1.3 (2 (2r) (n + m) + 3 (2r)^2) floats, activations aside."""
    peak, factors = layer_memory(1024, 1024, 32)
    assert peak <= 1.3 * factors
