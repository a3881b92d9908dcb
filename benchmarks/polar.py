"""polar_factor(auto) against each single algorithm and torch.linalg.svd over a grid.

    python benchmarks/polar.py [--threads 2] [--seconds 2] [--largest 2048] [--device cpu]
        [--out FILE_WITHOUT_SUFFIX]

Per matrix all contestants run in turn, in a new order each round, small matrices several times in
a row so that a turn lasts some milliseconds. The figure is the median over rounds, of processor
time with one thread (a busy machine then matters little), else of wall time. A contestant counts
only if it is accurate: defect at most 2 p eps, and backward error
||X - U herm(U^H X)||_F / ||X||_F, in float64, at most p eps. One that takes over three times the
best in its first run is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stiefel.errors import NotConvergedError
from stiefel.linalg import hermitian, polar_factor
from stiefel.linalg.polar import ALGORITHMS, default_tolerance
from stiefel.manifold import random_point

CONDITIONS = [1e0, 1e1, 1e2, 1e3, 1e4, 1e6, 1e8]
NOISE = "1e-3 noise"
GAUSSIAN = "Gaussian"
TURN = 2e-3  # seconds that a turn of the fastest contestant lasts at least
Contestant = Callable[[], Tensor]


def shapes(largest: int) -> list[tuple[int, ...]]:
    square = [(n, n) for n in (64, 128, 256, 512, 1024, 2048) if n <= largest]
    tall = [(4 * n, n) for n in (64, 256, 512) if 4 * n <= largest]
    batched = [(b, n, n) for b in (12, 64) for n in (64, 128, 256) if b * n <= 8 * largest]
    return [*square, *tall, *batched]


def matrix(shape: tuple[int, ...], kind: float | str, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape) + shape[-1])
    if kind == GAUSSIAN:
        return torch.randn(shape, generator=generator).to(device)
    p = shape[-1]
    left = random_point(*shape, generator=generator, dtype=torch.float64)
    if kind == NOISE:
        return (left + 1e-3 * torch.randn(shape, generator=generator)).float().to(device)
    right = random_point(*shape[:-2], p, p, generator=generator, dtype=torch.float64)
    sigma = torch.logspace(0, -math.log10(float(kind)), p, dtype=torch.float64)
    return ((left * sigma) @ right).float().to(device)


def contestants(x: Tensor) -> dict[str, Contestant]:
    runs: dict[str, Contestant] = {"auto": lambda: polar_factor(x).factor}
    for name in ALGORITHMS:
        runs[name] = lambda name=name: polar_factor(x, algorithm=name).factor  # type: ignore[misc]
    runs["torch.linalg.svd"] = lambda: torch.linalg.svd(x, full_matrices=False)[0]
    return runs


def accurate(x: Tensor, factor: Tensor) -> bool:
    x, factor = x.cpu(), factor.cpu()
    p, eps = x.shape[-1], torch.finfo(x.dtype).eps
    gram = factor.mH @ factor - torch.eye(p)
    wide, u = x.double(), factor.double()
    rest = wide - u @ hermitian(u.mH @ wide)
    backward = torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(wide)
    return bool((torch.linalg.matrix_norm(gram) <= default_tolerance(x)).all()) and bool(
        (backward <= p * eps).all()
    )


def timed(
    run: Contestant, clock: Callable[[], float], device: str, repeats: int = 1
) -> tuple[float, Tensor]:
    start = clock()
    for _ in range(repeats):
        factor = run()
    if device != "cpu":
        torch.cuda.synchronize()
    return (clock() - start) / repeats, factor


def corner(
    shape: tuple[int, ...], kind: float | str, options: argparse.Namespace
) -> dict[str, Any]:
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    x = matrix(shape, kind, options.device)
    runs, times = contestants(x), {}
    for name in list(runs):
        try:
            timed(runs[name], clock, options.device)
            seconds, factor = timed(runs[name], clock, options.device)
        except NotConvergedError:
            continue
        if name == "torch.linalg.svd" or accurate(x, factor):
            times[name] = [seconds]
    singles = [name for name in times if name in ALGORITHMS]
    first = min(times[name][0] for name in singles)
    rotating = [n for n in times if n not in singles or times[n][0] <= 3 * first]
    repeats = max(1, math.ceil(TURN / first))
    begin, rounds, order = time.perf_counter(), 0, random.Random(0)
    while rounds < 5 or (time.perf_counter() - begin < options.seconds and rounds < 100):
        order.shuffle(rotating)
        for name in rotating:
            times[name].append(timed(runs[name], clock, options.device, repeats)[0])
        rounds += 1
    medians = {name: statistics.median(values[1:] or values) for name, values in times.items()}
    best = min(singles, key=medians.__getitem__)
    return {
        "shape": list(shape),
        "kind": kind if isinstance(kind, str) else f"{kind:.0e}",
        "chosen": polar_factor(x).algorithm,
        "best": best,
        "auto_over_best": medians["auto"] / medians[best],
        "svd_over_auto": medians["torch.linalg.svd"] / medians["auto"],
        "rounds": rounds,
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
    }


def table(report: dict[str, Any]) -> str:
    names = ["auto", *ALGORITHMS, "torch.linalg.svd"]
    lines = [
        "# polar_factor: the automatic choice against each algorithm",
        "",
        f"`{report['command']}`; {report['device']}, torch {report['torch']}, float32, "
        f"{report['threads']} thread(s), {report['clock']}. Medians in ms; a dash: inaccurate.",
        "",
        "| shape | condition | chosen | auto / best | svd / auto | " + " | ".join(names) + " |",
        "|---" * (5 + len(names)) + "|",
    ]
    for row in report["rows"]:
        cells = [
            f"{row['milliseconds'][n]:.3g}" if n in row["milliseconds"] else "-" for n in names
        ]
        lines.append(
            f"| {' x '.join(map(str, row['shape']))} | {row['kind']} | {row['chosen']} "
            f"| {row['auto_over_best']:.2f} | {row['svd_over_auto']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    ratios = [row["auto_over_best"] for row in report["rows"] if row["kind"] != GAUSSIAN]
    square = [row["auto_over_best"] for row in report["rows"] if row["kind"] == GAUSSIAN]
    over = sum(ratio > 1.1 for ratio in ratios)
    near = [row["svd_over_auto"] for row in report["rows"] if row["kind"] == NOISE]
    lines += [
        "",
        f"auto / best: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}, over 1.1 "
        f"in {over} of {len(ratios)} corners; Gaussian matrices apart: median "
        f"{statistics.median(square):.2f}, worst {max(square):.2f}. Near-orthogonal input: "
        f"torch.linalg.svd takes {min(near):.1f} to {max(near):.1f} times as long.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--largest", type=int, default=2048)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/polar"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for shape in shapes(options.largest):
        for kind in (NOISE, *CONDITIONS, GAUSSIAN):
            rows.append(corner(shape, kind, options))
            brief = {k: v for k, v in rows[-1].items() if k != "milliseconds"}
            print(json.dumps(brief), flush=True)
    report = {
        "command": f"python benchmarks/polar.py --threads {options.threads} "
        f"--seconds {options.seconds:g} --largest {options.largest} --device {options.device}",
        "device": torch.cuda.get_device_name() if options.device != "cpu" else platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": "processor time" if options.threads == 1 else "wall time",
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
