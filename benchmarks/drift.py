"""Drift soak: the defect over 20,000 random rank-1 steps in float32; the authors' beside ours.

    python benchmarks/drift.py --reference PATH --steps 20000

Bound: ``2e-6 sqrt(N)``, and flat. The plot is written to docs/.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from side_by_side import REFERENCE_HELP, reference, write
from torch import Tensor

from stiefel.linalg import orthogonality_defect
from stiefel.unitary import step_
from stiefel.unitary.initialisation import haar_

Step = Callable[[Tensor, Tensor, Tensor, int], Tensor]


def ours(variant: Any) -> Step:
    def step(W: Tensor, a: Tensor, b: Tensor, index: int) -> Tensor:
        column = index % W.shape[1]
        step_(W, a, b, variant=variant, columns=range(column, column + 1))
        return W

    return step


def theirs(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Step:
    return lambda W, a, b, _: function(W, a, b)


def soak(step: Step, n: int, size: float, steps: int) -> list[tuple[int, float]]:
    """Defects, measured in float64, at a geometric grid of steps."""
    generator = torch.Generator().manual_seed(n)
    W = haar_(torch.empty(n, n), generator=generator)
    marks = {round(10 ** (e / 4)) for e in range(0, 40)} | {steps}
    curve = [(0, float(orthogonality_defect(W.double())))]
    for index in range(1, steps + 1):
        a = torch.randn(1, n, generator=generator)
        b = torch.randn(1, n, generator=generator)
        a *= size / (a.norm() * b.norm())
        W = step(W, a.mT, b.mT, index)
        if index in marks:
            defect = float(orthogonality_defect(W.double()))
            curve.append((index, defect))
            if not math.isfinite(defect) or defect > 1e6:
                break
    return curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help=REFERENCE_HELP)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--reference-sizes", type=int, nargs="+", default=[128])
    parser.add_argument("--amplitudes", type=float, nargs="+", default=[0.02, 0.1, 0.3])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    authors = reference(options.reference)
    methods: dict[str, Step] = {"T": ours("tangent"), "D": ours("direct")}
    if authors is not None:
        methods |= {"authors T": theirs(authors.projUNN_T), "authors D": theirs(authors.projUNN_D)}
    rows: list[dict[str, Any]] = []
    for n in options.sizes:
        for size in options.amplitudes:
            for name, step in methods.items():
                if name.startswith("authors") and n not in options.reference_sizes:
                    continue
                curve = soak(step, n, size, options.steps)
                row: dict[str, Any] = {"method": name, "N": n, "amplitude": size}
                row |= {"steps": curve[-1][0], "last": curve[-1][1]}
                row |= {"largest": max(d for _, d in curve), "bound": 2e-6 * math.sqrt(n)}
                rows.append({**row, "curve": [list(point) for point in curve]})
                print(row, flush=True)
    write("drift", title="Orthogonality defect over random rank-1 steps, float32", rows=rows)
    plot(rows)


def plot(rows: list[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    loudest = max(row["amplitude"] for row in rows)
    for row in rows:
        if row["amplitude"] == loudest:
            points = [p for p in row["curve"] if p[0] > 0]
            label = f"{row['method']}, N={row['N']}"
            axes.loglog(*zip(*points, strict=True), label=label)
    axes.set_xlabel(f"rank-1 steps of Frobenius norm {loudest}")
    axes.set_ylabel("||W^T W - I||_F")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(Path(__file__).parents[1] / "docs" / "projunn_drift.png", dpi=120)


if __name__ == "__main__":
    main()
