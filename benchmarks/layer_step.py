"""A training step of one square linear layer: orthogonal with exact factors, or plain with SGD.

    python benchmarks/layer_step.py --sizes 1024 2048 --batch 64

In turn, each in a process of its own: forward, backward to the input, and the parameter's step.
Plain: dense gradient and ``torch.optim.SGD``. Ours: factors of rank batch, exact T, drift control;
no gradient is formed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from side_by_side import apart, write
from torch import nn

from stiefel.unitary import OrthogonalLinear, ProjUNN

Call = Callable[[], Any]


def plain(n: int, batch: int, optimizer: type[torch.optim.Optimizer] | None) -> Call:
    layer = nn.Linear(n, n, bias=False).requires_grad_(optimizer is not None)
    return training_step(layer, optimizer and optimizer(layer.parameters(), lr=1e-3), batch)


def orthogonal(n: int, batch: int) -> Call:
    layer = OrthogonalLinear(n, n, bias=False)
    return training_step(layer, ProjUNN([layer.frame], lr=1e-3), batch)


def training_step(layer: Any, optimizer: torch.optim.Optimizer | None, batch: int) -> Call:
    n = layer.in_features
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(batch, n, generator=generator).requires_grad_()
    delta = torch.randn(batch, n, generator=generator) / n

    def call() -> None:
        x.grad = None
        layer(x).backward(delta)
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for n in options.sizes:
        size = (n, options.batch)
        builds = {
            "forward and input gradient": partial(plain, *size, None),
            "plain SGD": partial(plain, *size, torch.optim.SGD),
            "plain Adam": partial(plain, *size, torch.optim.Adam),
            "orthogonal, exact T": partial(orthogonal, *size),
        }
        times = apart(builds, seconds=options.seconds)
        for name, taken in times.items():
            row: dict[str, Any] = {"N": n, "batch": options.batch, "step": name, "ms": taken}
            row["over plain SGD"] = taken / times["plain SGD"]
            rows.append(row)
    write("layer_step", title="Training step of one linear layer, float32", rows=rows)


if __name__ == "__main__":
    main()
