"""Copying memory: recall ten symbols after T blank steps. projUNN-T, projUNN-D, plain RNN.

    python benchmarks/copying_memory.py --delay 200 --hidden 128 --iterations 3000

Without memory the best loss is ``10 ln 8 / (T + 20)``; solved means below a tenth of it.
"""

from __future__ import annotations

import argparse
import math
import time
from typing import Any

import torch
from side_by_side import write
from torch import Tensor, nn
from torch.nn import functional

from stiefel.unitary import OrthogonalRNN, ProjUNN, euclidean_parameters, manifold_parameters

SYMBOLS, LENGTH = 8, 10


class Recaller(nn.Module):
    """Recurrent layer and read-out."""

    def __init__(self, recurrence: nn.Module, hidden: int) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.out = nn.Linear(hidden, SYMBOLS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores at every position of ``(batch, time, 10)``."""
        states, _ = self.recurrence(x)
        return self.out(states)


def batch(size: int, delay: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (size, delay + 20, 10) one-hot: symbols 1..8, blank 0, go 9; targets of the same."""
    symbols = torch.randint(1, SYMBOLS + 1, (size, LENGTH), generator=generator)
    codes = torch.zeros(size, delay + 2 * LENGTH, dtype=torch.long)
    codes[:, :LENGTH] = symbols
    codes[:, delay + LENGTH - 1] = SYMBOLS + 1
    target = torch.zeros_like(codes)
    target[:, -LENGTH:] = symbols
    return functional.one_hot(codes, SYMBOLS + 2).float(), target


def build(kind: str, options: Any) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    generator = torch.Generator().manual_seed(options.seed)
    torch.manual_seed(options.seed)
    if kind == "plain":
        recurrence: nn.Module = nn.RNN(
            SYMBOLS + 2, options.hidden, nonlinearity="tanh", batch_first=True
        )
        model = Recaller(recurrence, options.hidden)
        return model, [torch.optim.RMSprop(model.parameters(), lr=options.lr)]
    recurrence = OrthogonalRNN(
        SYMBOLS + 2, options.hidden, nonlinearity=options.nonlinearity, generator=generator
    )
    model = Recaller(recurrence, options.hidden)
    manifold = ProjUNN(
        manifold_parameters(model),
        lr=options.lr / options.divider,
        variant=kind,
        rank=1,
        scaling="rmsprop",
    )
    return model, [torch.optim.RMSprop(euclidean_parameters(model), lr=options.lr), manifold]


def train(kind: str, options: Any) -> dict[str, Any]:
    model, optimizers = build(kind, options)
    generator = torch.Generator().manual_seed(options.seed + 1)
    naive = LENGTH * math.log(SYMBOLS) / (options.delay + 2 * LENGTH)
    curve, recent, start = [], naive, time.perf_counter()
    for iteration in range(1, options.iterations + 1):
        x, target = batch(options.batch, options.delay, generator)
        loss = functional.cross_entropy(model(x).transpose(1, 2), target)
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(euclidean_parameters(model), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        recent = 0.95 * recent + 0.05 * loss.item()
        if iteration % 50 == 0:
            curve.append([iteration, recent])
            print(f"{kind} {iteration} {recent / naive:.4f} of naive", flush=True)
        if recent < 0.05 * naive:
            break
    held = torch.Generator().manual_seed(10_000)
    with torch.no_grad():
        x, target = batch(1000, options.delay, held)
        test = float(functional.cross_entropy(model(x).transpose(1, 2), target))
    return {
        "model": kind,
        "iterations": iteration,
        "test_loss": test,
        "share_of_naive": test / naive,
        "naive_loss": naive,
        "seconds": time.perf_counter() - start,
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--delay", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--divider", type=float, default=4)
    parser.add_argument("--nonlinearity", default="relu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=["tangent", "direct", "plain"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [train(kind, options) for kind in options.models]
    notes = "Solved means below a tenth of the naive loss."
    write("copying_memory", title=f"Copying memory, T = {options.delay}", rows=rows, notes=notes)


if __name__ == "__main__":
    main()
