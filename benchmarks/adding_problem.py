"""Adding problem: the sum of two marked numbers in a sequence of T. Chance: 0.167.

python benchmarks/adding_problem.py --length 200 --hidden 128 --iterations 3000
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from side_by_side import write
from torch import Tensor, nn

from stiefel.unitary import OrthogonalRNN, ProjUNN, euclidean_parameters, manifold_parameters


class Adder(nn.Module):
    """Recurrent layer and a read-out of its last state."""

    def __init__(self, recurrence: nn.Module, hidden: int) -> None:
        super().__init__()
        self.recurrence = recurrence
        self.out = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Predict the sum from ``(batch, time, 2)``."""
        states, _ = self.recurrence(x)
        return self.out(states[:, -1])[:, 0]


def batch(size: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers in [0, 1] and two marks, one in each half; (size, length, 2) and the sums."""
    values = torch.rand(size, length, generator=generator)
    marks = torch.zeros(size, length)
    half = length // 2
    rows = torch.arange(size)
    for start in (0, half):
        marks[rows, start + torch.randint(half, (size,), generator=generator)] = 1
    return torch.stack((values, marks), -1), (values * marks).sum(1)


def build(kind: str, options: Any) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(options.seed)
    if kind == "plain":
        plain: nn.Module = nn.RNN(2, options.hidden, nonlinearity="tanh", batch_first=True)
        model = Adder(plain, options.hidden)
        return model, [torch.optim.RMSprop(model.parameters(), lr=options.lr)]
    recurrence = OrthogonalRNN(2, options.hidden, initialisation="identity")
    model = Adder(recurrence, options.hidden)
    manifold = ProjUNN(
        manifold_parameters(model),
        lr=options.lr / options.divider,
        variant=kind,
        scaling="rmsprop",
    )
    return model, [torch.optim.RMSprop(euclidean_parameters(model), lr=options.lr), manifold]


def train(kind: str, options: Any) -> dict[str, Any]:
    model, optimizers = build(kind, options)
    generator = torch.Generator().manual_seed(options.seed + 1)
    curve, recent, start = [], 0.167, time.perf_counter()
    for iteration in range(1, options.iterations + 1):
        x, target = batch(options.batch, options.length, generator)
        loss = (model(x) - target).square().mean()
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(euclidean_parameters(model), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        recent = 0.98 * recent + 0.02 * loss.item()
        if iteration % 50 == 0:
            curve.append([iteration, recent])
            print(kind, iteration, recent, flush=True)
        if recent < 0.004:
            break
    with torch.no_grad():
        x, target = batch(2000, options.length, torch.Generator().manual_seed(10_000))
        test = float((model(x) - target).square().mean())
    taken = time.perf_counter() - start
    return {"model": kind, "iterations": iteration, "test_mse": test, "seconds": taken} | {
        "curve": curve
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--divider", type=float, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="+", default=["tangent", "direct", "plain"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [train(kind, options) for kind in options.models]
    notes = "Chance is 0.167; solved means below 0.01."
    write("adding_problem", title=f"Adding problem, T = {options.length}", rows=rows, notes=notes)


if __name__ == "__main__":
    main()
