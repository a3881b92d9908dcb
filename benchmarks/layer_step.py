"""A training step of one square linear layer: orthogonal with exact factors, or plain with SGD.

    python benchmarks/layer_step.py --sizes 1024 2048 --batch 64

Both do forward, backward to the input, and the parameter's step. Plain: dense gradient and
``torch.optim.SGD``. Ours: factors of rank batch, exact T, drift control; no gradient is formed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import interleaved, write
from torch import nn

from stiefel.unitary import OrthogonalLinear, ProjUNN


def training_step(
    layer: nn.Module, optimizer: torch.optim.Optimizer | None, n: int, batch: int
) -> Callable[[], Any]:
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
        plain = nn.Linear(n, n, bias=False)
        dense = nn.Linear(n, n, bias=False)
        frozen = nn.Linear(n, n, bias=False).requires_grad_(requires_grad=False)
        factored = OrthogonalLinear(n, n, bias=False)
        times = interleaved(
            {
                "forward and input gradient": training_step(frozen, None, n, options.batch),
                "plain SGD": training_step(
                    plain, torch.optim.SGD(plain.parameters(), lr=1e-3), n, options.batch
                ),
                "plain Adam": training_step(
                    dense, torch.optim.Adam(dense.parameters(), lr=1e-3), n, options.batch
                ),
                "orthogonal, exact T": training_step(
                    factored, ProjUNN([factored.frame], lr=1e-3), n, options.batch
                ),
            },
            seconds=options.seconds,
        )
        for name, taken in times.items():
            row: dict[str, Any] = {"N": n, "batch": options.batch, "step": name, "ms": taken}
            row["over plain SGD"] = taken / times["plain SGD"]
            rows.append(row)
    write("layer_step", title="Training step of one linear layer, float32", rows=rows)


if __name__ == "__main__":
    main()
