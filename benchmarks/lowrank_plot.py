"""Draw the MNIST frontiers: ours from benchmarks/results, the authors' as published.

python benchmarks/lowrank_plot.py --out docs/lowrank-frontier.svg
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
# (percent saved, accuracy) after 250 epochs of adaptive training and 100 of fine-tuning.
AUTHORS = [(35.0, 98.47), (61.6, 98.49), (75.3, 98.37), (82.6, 98.10), (86.5, 97.95), (89.2, 97.41)]
AUTHORS += [(91.1, 97.44), (92.4, 96.53)]
AUTHORS_LENET = [(93.0, 98.21), (95.3, 98.14), (97.0, 98.12), (97.8, 97.45)]
# The same points with both factors counted: their result files leave the inputs' factor out.
AUTHORS_LENET_WHOLE = [(81.7, 98.21), (88.2, 98.14), (93.2, 98.12), (95.6, 97.45)]


def frontier(
    name: str, saved: Callable[[dict[str, Any]], float] = lambda run: run["saved"]
) -> list[tuple[float, float]]:
    """Mean over seeds of every tolerance and length of training, by share saved."""
    path = RESULTS / name
    if not path.exists():
        return []
    groups = defaultdict(list)
    for run in json.loads(path.read_text())["runs"]:
        groups[run["tolerance"], run.get("epochs")].append((saved(run), run["accuracy"]))
    return sorted(
        (statistics.mean(s for s, _ in runs), statistics.mean(a for _, a in runs))
        for runs in groups.values()
    )


def saved_as_published(run: dict[str, Any]) -> float:
    """Share that the authors would print for a LeNet5 of these ranks: one factor, and the head."""
    kept = sum((n + 1) * rank for n, rank in zip((20, 50, 500), run["ranks"], strict=True)) + 5000
    return 100 * (1 - kept / 430_500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    plt.rcParams["svg.hashsalt"] = "stiefel"
    lenet = frontier("lenet_frontier.json")
    panels = 2 if lenet else 1
    figure, grid = plt.subplots(1, panels, figsize=(6 * panels, 4), squeeze=False)
    curves = [
        (
            "ours, 25 epochs, shifted images, 3 seeds",
            "mnist_frontier.json",
            "o-",
        ),
        ("ours, without shifts, smoothed labels", "mnist_frontier_plain.json", "s--"),
    ]
    for label, name, style in curves:
        grid[0, 0].plot(*zip(*frontier(name), strict=True), style, label=label)
    grid[0, 0].plot(*zip(*AUTHORS, strict=True), "x:", label="authors, 250 + 100 epochs")
    titles = ["MNIST, 5 layers of width 500"]
    if lenet:
        as_published = frontier("lenet_frontier.json", saved_as_published)
        lenet_curves = [
            (lenet, "o-", "ours, 12 epochs, shifted images, 3 seeds"),
            (as_published, "s--", "the same runs, counted as the authors do"),
            (AUTHORS_LENET_WHOLE, "x:", "authors, both factors counted"),
            (AUTHORS_LENET, "+:", "authors, as published"),
        ]
        for points, style, label in lenet_curves:
            grid[0, 1].plot(*zip(*points, strict=True), style, label=label)
        titles.append("MNIST, LeNet5")
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set(title=title, xlabel="parameters saved, %", ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize="small")
    figure.tight_layout()
    figure.savefig(args.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
