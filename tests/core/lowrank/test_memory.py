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
    """Peak bytes of the storages that operations create and that are still alive.

    Tensors with a dimension of ``rows`` are activations of the batch and do not count.
    """

    def __init__(self, rows):
        super().__init__()
        self.rows, self.alive, self.peak = rows, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and self.rows not in leaf.shape:
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


def layer_memory(n, m, rank, *, kernel=1, rows=7):
    """Peak bytes of a layer in training, activations aside, and of 2 (2r) (n + m) + 3 (2r)^2.

    A ``kernel`` over 1 makes it a convolution, m = C_in kernel^2, of one image with ``rows``
    pixels. No other dimension may equal ``rows``.
    """
    generator = torch.Generator().manual_seed(0)
    if kernel == 1:
        layer = LowRankLinear(m, n, rank, bias=False, generator=generator)
        x = torch.randn(rows, m, generator=generator)
    else:
        like = nn.Conv2d(m // kernel**2, n, kernel, padding=kernel // 2, bias=False)
        layer = LowRankConv2d.drawn(like, rank, generator=generator)
        x = torch.randn(1, m // kernel**2, 1, rows, generator=generator)
    net = nn.Sequential(layer)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    integrator = LowRankIntegrator(net, optimizer, phase=3, min_rank=rank, max_rank=rank)
    steps(net, integrator, x, 3)
    live = LiveBytes(rows)
    for tensor in (layer.U, layer.V, layer.S, *optimizer.state[layer.S].values()):
        live.track(tensor)
    with live:
        steps(net, integrator, x, 6)
    return live.peak, 4 * (2 * 2 * rank * (n + m) + 3 * (2 * rank) ** 2)


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


# With fewer rows than the rank Householder makes the new directions, with more Cholesky.
@pytest.mark.parametrize("rows", [7, 97])
@pytest.mark.parametrize(
    ("n", "m", "rank", "kernel"),
    [(1024, 1024, 32, 1), (2048, 512, 32, 1), (512, 2048, 32, 1), (256, 256 * 9, 32, 3)],
    ids=["square", "tall", "wide", "convolution"],
)
def test_live_memory_of_a_layer_stays_within_its_factors(n, m, rank, kernel, rows):
    """At most 1.3 (2 (2r) (n + m) + 3 (2r)^2) floats, activations aside."""
    peak, factors = layer_memory(n, m, rank, kernel=kernel, rows=rows)
    assert peak <= 1.3 * factors
