"""How far one AdamW step moves a core, by the rule that carries second moments to turned bases.

    python benchmarks/second_moments.py [--out FILE]

Three low-rank layers of 256 on sklearn's digits, 25 epochs of 64, tolerance 0.1, phase 5. The
largest change of any entry of a core in one step is told in learning rates; see decision 7.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from stiefel.lowrank import LowRankIntegrator, to_low_rank, transport
from stiefel.lowrank.steps import transport_second

Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


def published(moment: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The rule of the code of arXiv 2505.08022."""
    return (left.mT @ moment.clamp_min(0).sqrt() @ right).square()


def train(seed: int, rule: Rule, learning_rate: float) -> dict[str, Any]:
    transport.transport_second = rule  # type: ignore[attr-defined]
    torch.manual_seed(seed)
    sizes = (64, 256, 256, 256)
    parts = [p for n, m in pairwise(sizes) for p in (nn.Linear(n, m), nn.ReLU())]
    net = to_low_rank(nn.Sequential(*parts, nn.Linear(256, 10)), 24, keep_norm=True).model
    optimizer = torch.optim.AdamW(net.parameters(), lr=learning_rate, weight_decay=0)
    integrator = LowRankIntegrator(net, optimizer, tolerance=0.1, phase=5)
    moves, losses = [0.0], []
    step = optimizer.step

    def watched() -> None:
        cores = [member.layer.S for member in integrator.members]
        before = [core.detach().clone() for core in cores]
        step()
        moves.extend(
            float((c.detach() - b).abs().max()) for c, b in zip(cores, before, strict=True)
        )

    optimizer.step = watched  # type: ignore[assignment, method-assign]
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = (x / 16).float()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(25):
        for index in torch.randperm(1347, generator=generator).split(64):
            integrator.zero_grad()
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            loss.backward()
            integrator.step()
            losses.append(float(loss.detach()))
    return {
        "seed": seed,
        "largest_step_in_learning_rates": round(max(moves) / learning_rate, 1),
        "loss_of_the_last_50_batches": round(statistics.mean(losses[-50:]), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for rate in (3e-3, 1e-2):
        for name, rule in (("published", published), ("ours", transport_second)):
            for seed in options.seeds:
                rows.append({"learning_rate": rate, "rule": name, **train(seed, rule, rate)})
                print(json.dumps(rows[-1]), flush=True)
    if options.out:
        record = {"command": "python benchmarks/second_moments.py", "torch": torch.__version__}
        options.out.write_text(json.dumps(record | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
