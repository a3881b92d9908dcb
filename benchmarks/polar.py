"""polar_factor(auto) against each single algorithm and torch.linalg.svd over a grid.

    python benchmarks/polar.py [--threads 2] [--seconds 2] [--largest 2048] [--device cpu]
        [--shapes 64x64,12x64x64,...] [--kinds 1e+03,Gaussian,...] [--append]
        [--out FILE_WITHOUT_SUFFIX]

Per matrix all contestants run in turn, in a new order each round, small matrices several times in
a row so that a turn lasts some milliseconds. The figure is the median over turns, of processor
time with one thread (a busy machine then matters little), else of wall time, over the turns in
which the threads waited for a processor during at most 2 % of it, and at least the third of them
that waited least (Linux; elsewhere all). A contestant counts only if it is accurate: defect at most
2 p eps, and backward error ||X - U herm(U^H X)||_F / ||X||_F, in float64, at most p eps. One that
takes over three times the best in the fastest of its first three runs is not run again. --append
keeps the rows of an earlier run, so that the table can be taken in pieces.
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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stiefel.errors import NotConvergedError
from stiefel.linalg import hermitian, polar_factor
from stiefel.linalg.polar import ALGORITHMS, default_tolerance
from stiefel.linalg.positive_qr import positive_qr

CONDITIONS = [1e0, 1e1, 1e2, 1e3, 1e4, 1e6, 1e8]
NOISE = "1e-3 noise"
GAUSSIAN = "Gaussian"
KINDS = [NOISE, *(f"{c:.0e}" for c in CONDITIONS), GAUSSIAN]
TURN = 4e-3  # seconds that a turn of the fastest contestant lasts at least
WAITING = 0.02  # share of a turn that its threads may have waited for a processor
RESULT = Path("benchmarks/results/polar")
Contestant = Callable[[], Tensor]


class Turn(NamedTuple):
    """One measurement: seconds per call, and the share of the turn that threads waited."""

    seconds: float
    waiting: float


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
    left = orthonormal(*shape, generator=generator, device=device)
    if kind == NOISE:
        return (left + 1e-3 * torch.randn(shape, generator=generator).to(device)).float()
    right = orthonormal(*shape[:-2], p, p, generator=generator, device=device)
    sigma = torch.logspace(0, -math.log10(float(kind)), p, dtype=torch.float64, device=device)
    return ((left * sigma) @ right).float()


def orthonormal(*shape: int, generator: torch.Generator, device: str) -> Tensor:
    """Drawn on the CPU, made orthonormal on the device, where large ones take a moment."""
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return positive_qr(drawn.to(device))[0]


def contestants(x: Tensor) -> dict[str, Contestant]:
    runs: dict[str, Contestant] = {"auto": lambda: polar_factor(x).factor}
    for name in ALGORITHMS:
        runs[name] = lambda name=name: polar_factor(x, algorithm=name).factor  # type: ignore[misc]
    runs["torch.linalg.svd"] = lambda: torch.linalg.svd(x, full_matrices=False)[0]
    return runs


def accurate(x: Tensor, factor: Tensor) -> bool:
    p, eps = x.shape[-1], torch.finfo(x.dtype).eps
    gram = factor.mH @ factor - torch.eye(p, device=x.device)
    wide, u = x.double(), factor.double()
    rest = wide - u @ hermitian(u.mH @ wide)
    backward = torch.linalg.matrix_norm(rest) / torch.linalg.matrix_norm(wide)
    return bool((torch.linalg.matrix_norm(gram) <= default_tolerance(x)).all()) and bool(
        (backward <= p * eps).all()
    )


def waited() -> float:
    """Seconds that the threads of this process have waited for a processor, where known."""
    total = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        total += int(thread.read_text().split()[1])
    return total / 1e9


def timed(
    run: Contestant, clock: Callable[[], float], device: str, repeats: int = 1
) -> tuple[Turn, Tensor]:
    waiting, start = waited(), clock()
    for _ in range(repeats):
        factor = run()
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = clock() - start
    return Turn(seconds / repeats, (waited() - waiting) / seconds), factor


def figure(turns: list[Turn]) -> tuple[float, float]:
    """The median over the turns that count, and the largest waiting share among them."""
    turns = sorted(turns, key=lambda turn: turn.waiting)
    counted = [turn for turn in turns if turn.waiting <= WAITING]
    counted = counted if 3 * len(counted) > len(turns) else turns[: max(5, len(turns) // 3)]
    return statistics.median(turn.seconds for turn in counted), counted[-1].waiting


def entrants(x: Tensor, clock: Callable[[], float], device: str) -> dict[str, list[Turn]]:
    """The first turns of everybody who is accurate: three, or one of those far behind."""
    turns: dict[str, list[Turn]] = {}
    for name, run in contestants(x).items():
        try:
            turn, factor = timed(run, clock, device)
        except NotConvergedError:
            continue
        if name == "torch.linalg.svd" or accurate(x, factor):
            best = min((min(known).seconds for known in turns.values()), default=turn.seconds)
            more = 2 if turn.seconds < 6 * best else 0
            turns[name] = [turn, *(timed(run, clock, device)[0] for _ in range(more))]
    return turns


def corner(
    shape: tuple[int, ...], kind: float | str, options: argparse.Namespace
) -> dict[str, Any]:
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    x = matrix(shape, kind, options.device)
    runs, turns = contestants(x), entrants(x, clock, options.device)
    fastest = {name: min(turns[name]).seconds for name in turns}
    singles = [name for name in turns if name in ALGORITHMS]
    first = min(fastest[name] for name in singles)
    rotating = [n for n in turns if n not in singles or fastest[n] <= 3 * first]
    repeats = max(1, math.ceil(TURN / first))
    for name in rotating:
        turns[name] = []
    begin, rounds, order = time.perf_counter(), 0, random.Random(0)
    while rounds < 5 or (time.perf_counter() - begin < options.seconds and rounds < 100):
        order.shuffle(rotating)
        for name in rotating:
            turns[name].append(timed(runs[name], clock, options.device, repeats)[0])
        rounds += 1
    figures = {name: figure(values) for name, values in turns.items()}
    medians = {name: value for name, (value, _) in figures.items()}
    best = min(singles, key=medians.__getitem__)
    return {
        "shape": list(shape),
        "kind": label(kind),
        "chosen": polar_factor(x).algorithm,
        "best": best,
        "auto_over_best": medians["auto"] / medians[best],
        "svd_over_auto": medians["torch.linalg.svd"] / medians["auto"],
        "rounds": rounds,
        "waiting": max(figures["auto"][1], figures[best][1]),
        "milliseconds": {name: 1e3 * value for name, value in medians.items()},
    }


def label(kind: float | str) -> str:
    return kind if isinstance(kind, str) else f"{kind:.0e}"


def table(report: dict[str, Any]) -> str:
    names = ["auto", *ALGORITHMS, "torch.linalg.svd"]
    lines = [
        "# polar_factor: the automatic choice against each algorithm",
        "",
        f"{report['device']}, torch {report['torch']}, float32, {report['threads']} thread(s), "
        f"{report['clock']}. Medians in ms; a dash: inaccurate. Waiting: the largest share of a "
        "counted turn of auto or the best in which a thread waited for a processor.",
        "",
        *(f"    {command}" for command in report["commands"]),
        "",
        "| shape | condition | chosen | best | auto / best | svd / auto | waiting | "
        + " | ".join(names)
        + " |",
        "|---" * (7 + len(names)) + "|",
    ]
    for row in report["rows"]:
        cells = [
            f"{row['milliseconds'][n]:.3g}" if n in row["milliseconds"] else "-" for n in names
        ]
        lines.append(
            f"| {' x '.join(map(str, row['shape']))} | {row['kind']} | {row['chosen']} "
            f"| {row['best']} | {row['auto_over_best']:.2f} | {row['svd_over_auto']:.2f} "
            f"| {row['waiting']:.0%} | " + " | ".join(cells) + " |"
        )
    ratios = [row["auto_over_best"] for row in report["rows"]]
    over = sum(ratio > 1.1 for ratio in ratios)
    gains = [row["svd_over_auto"] for row in report["rows"]]
    near = [row["svd_over_auto"] for row in report["rows"] if row["kind"] == NOISE]
    lines += [
        "",
        f"auto / best: median {statistics.median(ratios):.2f}, worst {max(ratios):.2f}, over 1.1 "
        f"in {over} of {len(ratios)} corners. torch.linalg.svd takes {min(gains):.2f} to "
        f"{max(gains):.1f} times as long as auto, median {statistics.median(gains):.1f}; on "
        f"near-orthogonal input (1e-3 noise) {min(near):.1f} to {max(near):.1f} times.",
    ]
    return "\n".join(lines) + "\n"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--largest", type=int, default=2048)
    parser.add_argument("--shapes", default="", help="a part of the grid, such as 64x64,12x64x64")
    parser.add_argument("--kinds", default="", help="a part of the kinds, such as 1e+03,Gaussian")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args()


def command(options: argparse.Namespace) -> str:
    words = [
        f"python benchmarks/polar.py --threads {options.threads}",
        f"--seconds {options.seconds:g} --largest {options.largest} --device {options.device}",
        *([f"--shapes {options.shapes}"] if options.shapes else []),
        *([f"--kinds {options.kinds}"] if options.kinds else []),
        *(["--append"] if options.append else []),
        *([f"--out {options.out}"] if options.out != RESULT else []),
    ]
    return " ".join(words)


def place(row: dict[str, Any]) -> tuple[int, int]:
    grid = [list(shape) for shape in shapes(2048)]
    return grid.index(row["shape"]), KINDS.index(row["kind"])


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"commands": [], "rows": []}
    if options.append and options.out.with_suffix(".json").exists():
        report = json.loads(options.out.with_suffix(".json").read_text())
    device = torch.cuda.get_device_name() if options.device != "cpu" else platform.machine()
    report |= {
        "commands": [*report["commands"], command(options)],
        "device": device,
        "torch": torch.__version__,
        "threads": options.threads,
        "clock": "processor time" if options.threads == 1 else "wall time",
    }
    wanted = options.shapes.split(",") if options.shapes else []
    for shape in shapes(options.largest):
        if wanted and "x".join(map(str, shape)) not in wanted:
            continue
        for kind in (NOISE, *CONDITIONS, GAUSSIAN):
            if options.kinds and label(kind) not in options.kinds.split(","):
                continue
            row = corner(shape, kind, options)
            brief = {k: v for k, v in row.items() if k != "milliseconds"}
            print(json.dumps(brief), flush=True)
            same = (row["shape"], row["kind"])
            rest = [old for old in report["rows"] if (old["shape"], old["kind"]) != same]
            report["rows"] = sorted([*rest, row], key=place)
            write(report, options.out)


def write(report: dict[str, Any], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
