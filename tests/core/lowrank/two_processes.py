"""Two gloo processes on halves of a batch, against one process on the whole; run by a test."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from stiefel.lowrank import LowRankIntegrator, OialrSchedule, prepare_for_ddp, to_low_rank

STEPS = 9


def build(kind, seed):
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 3)
    )
    net = net.double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 4)
    return to_low_rank(net, 4, dense=kind == "oialr").model


def stepper(kind, net):
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    if kind == "dlrt":
        return LowRankIntegrator(net, optimizer, tolerance=0.3, phase=2)
    return OialrSchedule(net, optimizer, delay=2, period=2, cutoff=0.5, share=1.0)


def train(kind, net, called, rows, check):
    steps = stepper(kind, net)
    data = torch.Generator().manual_seed(5)
    for _ in range(STEPS):
        x = torch.randn(32, 12, generator=data, dtype=torch.float64)
        y = torch.randint(0, 3, (32,), generator=data)
        net.zero_grad()
        nn.functional.cross_entropy(called(x[rows]), y[rows]).backward()
        steps.step()
        check(net)
    return steps.ranks


def agree(net):
    for value in net.state_dict().values():
        copies = [torch.empty_like(value) for _ in range(2)]
        distributed.all_gather(copies, value.contiguous())
        assert torch.equal(*copies)


def worker(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    for kind in ("dlrt", "oialr"):
        compare(kind, rank, folder)
    train_branches(rank, folder)
    distributed.barrier()
    # A wrapper still alive would hold the group's threads past the end of the interpreter.
    gc.collect()
    distributed.destroy_process_group()


def compare(kind, rank, folder):
    # Process 1 starts elsewhere: preparing must bring it into line.
    net = prepare_for_ddp(build(kind, seed=rank))
    wrapped = DistributedDataParallel(net)
    ranks = train(kind, net, wrapped, slice(16 * rank, 16 * rank + 16), agree)
    if rank == 0:
        assert ranks == solo_ranks(kind, net)
        Path(folder, f"agreed-{kind}").touch()


class Branches(nn.Module):
    """Each process may send its images through one of two convolutions only."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (nn.Conv2d(3, 8, 3, dtype=torch.float64) for _ in range(2))
        self.head = nn.Linear(8, 3, dtype=torch.float64)

    def forward(self, x, side):
        return self.head(getattr(self, side)(x).mean((-2, -1)))


def train_branches(rank, folder):
    """A layer that one process, or none, used in a batch steps all the same everywhere."""
    torch.manual_seed(0)
    net = prepare_for_ddp(to_low_rank(Branches(), 3).model)
    wrapped = DistributedDataParallel(net, find_unused_parameters=True)
    integrator = LowRankIntegrator(net, torch.optim.AdamW(net.parameters(), lr=1e-2), phase=2)
    # Whole phases of two batches: what is unused in one of them may still be truncated.
    both, turned = ("left", "right"), ("right", "left")
    for sides in (both, turned, *[("left",) * 2] * 2, *[("right",) * 2] * 2, turned, both):
        before = {side: getattr(net, side).weight.detach() for side in ("left", "right")}
        integrator.zero_grad()
        wrapped(torch.randn(4, 3, 8, 8, dtype=torch.float64), sides[rank]).square().sum().backward()
        integrator.step()
        agree(net)
        for side in ("left", "right"):
            kept = torch.equal(getattr(net, side).weight, before[side])
            assert kept == (side not in sides)
    if rank == 0:
        Path(folder, "agreed-branches").touch()


def solo_ranks(kind, net):
    from stiefel.lowrank import reduce

    together = reduce.is_distributed
    reduce.is_distributed = lambda: False
    alone = build(kind, seed=0)
    ranks = train(kind, alone, alone, slice(None), lambda _: None)
    reduce.is_distributed = together
    for index in (0, 2):
        torch.testing.assert_close(net[index].weight, alone[index].weight, atol=1e-9, rtol=1e-7)
    return ranks


if __name__ == "__main__":
    multiprocessing.spawn(worker, args=(sys.argv[1],), nprocs=2)
