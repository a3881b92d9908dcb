"""How the cost of one step grows with N: fitted exponents of ours and of the peers.

python benchmarks/projunn_scaling.py --reference PATH --sizes 512 1024 2048 4096
"""

from __future__ import annotations

import argparse
import math
import warnings
from typing import Any

import torch
from projunn_step import candidates
from side_by_side import REFERENCE_HELP, apart, reference, write

SHOWN = (
    "pass",
    "T k=1",
    "D k=1",
    "T k=8",
    "authors T k=1",
    "authors D k=1",
    "cayley",
    "matrix_exp",
)


def exponent(points: list[tuple[int, float]]) -> float:
    """Slope of the least-squares line through log N, log ms."""
    xs = [math.log(n) for n, _ in points]
    ys = [math.log(ms) for _, ms in points]
    mx, my = sum(xs) / len(xs), sum(ys) / len(ys)
    top = sum((x - mx) * (y - my) for x, y in zip(xs, ys, strict=True))
    return top / sum((x - mx) ** 2 for x in xs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help=REFERENCE_HELP)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--largest-peer", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    options.peers = ["cayley", "matrix_exp"]
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    authors = reference(options.reference)
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in SHOWN}
    for n in options.sizes:
        calls = candidates(n, "float32", authors, options)
        chosen = {name: call for name, call in calls.items() if name in SHOWN}
        for name, taken in apart(chosen, seconds=options.seconds).items():
            points[name].append((n, taken))
            print(n, name, taken, flush=True)
    rows: list[dict[str, Any]] = []
    for name, measured in points.items():
        if len(measured) > 1:
            row: dict[str, Any] = {"step": name}
            found = dict(measured)
            row.update({f"N={n} ms": found.get(n, "") for n in options.sizes})
            row["exponent"] = exponent(measured)
            rows.append(row)
    write("projunn_scaling", title="Cost of one step against N", rows=rows)
    plot(points)


def plot(points: dict[str, list[tuple[int, float]]]) -> None:
    from pathlib import Path

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for name, measured in points.items():
        if measured:
            axes.loglog(*zip(*measured, strict=True), marker="o", label=name)
    axes.set_xlabel("N")
    axes.set_ylabel("ms per step, float32")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "projunn_scaling.png", dpi=120)


if __name__ == "__main__":
    main()
