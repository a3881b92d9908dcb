"""What the service adds to a training: the same loop as a job and bare, metrics on and off.

    python benchmarks/training_overhead.py [--epochs 20] [--rounds 3] [--pair service] [--append]

A round trains the same network on the same arrays with the same threads, side after side, in pairs:

* ``service/bare``: a job of an embedded service, from POST to succeeded, with a point of the loss
  every 10 steps and a checkpoint every epoch, against the same loop in a script (``run_local``),
  from the start of reading the data: importing torch is not counted;
* ``streaming/silent``: two jobs, one with a point every step, one without any.

``by_hand_s``: with ``--by-hand``, a dozen lines of torch without checkpoints, metrics or report.

The order within a pair turns from round to round. Bars on the medians: service / bare at most 1.05,
streaming / silent under 1.02. ``--pair`` and ``--append`` cut a long run into short ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from stage import PYTHON, Service, command_line, publish, service
from trainings import arrays, bare_seconds, earlier, job_seconds, network, uploaded

BARS = {"service/bare": 1.05, "streaming/silent": 1.02}
OFTEN, NEVER = 10, 1_000_000  # steps between points


def main() -> int:
    options = _options()
    if options.bare:
        _bare(Path(options.bare), options)
        return 0
    rows = earlier(options.out, options.append)
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), "embedded") as made:
        made.start_api()
        made.start_worker()
        content = arrays()
        source = made.folder / "input"
        source.mkdir()
        (source / "train").write_bytes(content)
        data = uploaded(made, content)
        for _ in range(options.rounds):
            for pair in (options.pair,) if options.pair else BARS:
                rows.append(_round(made, data, source, options, pair, rows))
    medians = {pair: _median(rows, pair) for pair in BARS}
    title = "Overhead of the service on a training"
    command = command_line()
    publish(options.out, title, command, rows, medians=medians, bars=BARS)
    return int(any((medians[pair] or 0) > bar for pair, bar in BARS.items()))


def _median(rows: list[dict[str, Any]], pair: str) -> float | None:
    ratios = [row["ratio"] for row in rows if row["pair"] == pair]
    return round(statistics.median(ratios), 4) if ratios else None


def _round(
    made: Service,
    data: dict[str, Any],
    source: Path,
    options: argparse.Namespace,
    pair: str,
    earlier_rows: list[dict[str, Any]],
) -> dict[str, Any]:
    number = sum(row["pair"] == pair for row in earlier_rows)

    def job(log_every: int) -> float:
        spec = network(options.epochs, data, seed=number, log_every=log_every)
        return job_seconds(made, spec)

    every = {
        "service": lambda: job(OFTEN),
        "bare": lambda: _script(source, "loop", options, number),
        "streaming": lambda: job(1),
        "silent": lambda: job(NEVER),
        "by hand": lambda: _script(source, "hand", options, number),
    }
    names = pair.split("/")
    order = names if number % 2 == 0 else names[::-1]
    if options.by_hand and pair == "service/bare":
        order = [*order, "by hand"]
    took = {name: every[name]() for name in order}
    first, second = (took[name] for name in names)
    return {
        "round": number + 1,
        "pair": pair,
        "steps": options.epochs * (20_000 * 9 // 10 // 128),
        "first_s": round(first, 2),
        "second_s": round(second, 2),
        "ratio": round(first / second, 4),
        "by_hand_s": round(took["by hand"], 2) if "by hand" in took else "",
    }


def _script(source: Path, how: str, options: argparse.Namespace, seed: int) -> float:
    command = [PYTHON, __file__, "--bare", str(source), "--how", how, "--seed", str(seed)]
    env = os.environ | {"OMP_WAIT_POLICY": "passive"}  # as the worker sets it for its children
    done = subprocess.run(
        [*command, "--epochs", str(options.epochs)],
        check=True,
        capture_output=True,
        text=True,
        env=env,
    )
    return float(done.stdout.split()[-1])


def _bare(source: Path, options: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if options.how == "hand":
        _by_hand(source, options)
        return
    print(bare_seconds(source, network(options.epochs, {}, seed=options.seed, log_every=OFTEN)))


def _by_hand(source: Path, options: argparse.Namespace) -> None:
    """What anybody would write: arrays in memory, Adam, a test at the end of every epoch."""
    import numpy as np
    import torch
    from torch import nn

    began = time.perf_counter()
    torch.manual_seed(options.seed)
    with np.load(source / "train") as found:
        x, y = torch.from_numpy(found["x"]).float().flatten(1), torch.from_numpy(found["y"])
    x = (x - x.mean()) / x.std()
    held = len(x) // 10
    widths = [784, 500, 500, 500]
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Linear(500, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, foreach=True)
    for _ in range(options.epochs):
        order = torch.randperm(len(x) - held) + held
        for chosen in order[: len(order) // 128 * 128].split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[chosen]), y[chosen]).backward()
            optimizer.step()
        with torch.no_grad():
            (network(x[:held]).argmax(1) == y[:held]).float().mean().item()
    print(time.perf_counter() - began)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pair", choices=list(BARS), help="this pair alone")
    parser.add_argument("--append", action="store_true", help="add to the rows of the result")
    parser.add_argument("--by-hand", action="store_true", help="one side more: plain torch")
    parser.add_argument("--out", default="training_overhead")
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("--how", default="loop", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
