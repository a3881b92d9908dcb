"""Which engine takes a matrix apart fastest, and what each costs in accuracy.

    python benchmarks/svd_engines.py [--shapes 1024x1024 4096x1024] [--ranks 64 256]
                                     [--spectra flat i^-1/2 0.97^i] [--rounds 5] [--threads 2]
                                     [--clock wall|cpu] [--append] [--out svd_engines]

``--clock cpu`` with one thread reads processor time, which other work on the machine disturbs less.
``--append`` adds to the table that is there, so that a long one can be taken in parts.

The engines of ``factorize.low_rank`` on float32 matrices with three spectra, interleaved round by
round beside torch's own float32 SVD and ``torch.svd_lowrank``. A time is the median over rounds; a
ratio is the median of per-round ratios to the float32 SVD; ``excess`` is the Frobenius error of the
rank-r product over the Eckart-Young optimum, minus one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from stage import RESULTS, command_line, publish
from torch import Tensor

from stiefel.linalg.truncated_svd import Svd, singular_values, thin_svd, truncated_svd

Engine = Callable[[Tensor, int], Svd]
BASE = "torch svd float32"
ENGINES: dict[str, Engine] = {
    BASE: lambda x, r: Svd(*torch.linalg.svd(x, full_matrices=False)),
    "torch svd_lowrank": lambda x, r: _torch_lowrank(x, r),
    "full": lambda x, r: thin_svd(x, engine="full"),
    "gram": lambda x, r: thin_svd(x, engine="gram"),
    "randomised": lambda x, r: truncated_svd(x, r, generator=torch.Generator().manual_seed(0)),
}
SPECTRA: dict[str, Callable[[Tensor], Tensor]] = {
    "flat": lambda i: torch.ones_like(i),
    "i^-1/2": lambda i: i**-0.5,
    "0.97^i": lambda i: 0.97**i,
}


def main() -> int:
    options = _options()
    torch.set_num_threads(options.threads)
    command = command_line()
    rows, commands = _earlier(options.out) if options.append else ([], [])
    for shape in options.shapes:
        n, m = (int(side) for side in shape.split("x"))
        for spectrum in options.spectra:
            x = _matrix(n, m, spectrum)
            sigma = singular_values(x)
            for rank in options.ranks:
                rows += _compare(x, sigma, rank, options, f"{shape} {spectrum} r={rank}")
    publish(options.out, "Engines for low rank", command, rows, parts=[*commands, command])
    return 0


def _earlier(name: str) -> tuple[list[dict[str, Any]], list[str]]:
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return [], []
    found = json.loads(path.read_text())
    return found["rows"], found["parts"]


def _matrix(n: int, m: int, spectrum: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, m, generator=generator)
    if spectrum == "flat":
        return x
    U, _, Vh = torch.linalg.svd(x, full_matrices=False)
    sigma = SPECTRA[spectrum](torch.arange(1, min(n, m) + 1, dtype=torch.float32))
    return (U * sigma) @ Vh


def _compare(
    x: Tensor, sigma: Tensor, rank: int, options: argparse.Namespace, case: str
) -> list[dict[str, Any]]:
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in ENGINES}
    excess = {name: _excess(x, engine(x, rank), sigma, rank) for name, engine in ENGINES.items()}
    for _ in range(options.rounds):
        for name, engine in ENGINES.items():
            began = clock()
            engine(x, rank)
            seconds[name].append(clock() - began)
    return [
        {
            "case": case,
            "engine": name,
            "ms": round(1000 * statistics.median(times), 1),
            "ratio": round(
                statistics.median(a / b for a, b in zip(times, seconds[BASE], strict=True)), 3
            ),
            "excess": f"{excess[name]:.1e}",
        }
        for name, times in seconds.items()
    ]


def _excess(x: Tensor, svd: Svd, sigma: Tensor, rank: int) -> float:
    U, s, Vh = (part.double() for part in svd)
    product = (U[:, :rank] * s[:rank]) @ Vh[:rank]
    optimum = float(torch.linalg.vector_norm(sigma[rank:]))
    return float(torch.linalg.vector_norm(x.double() - product)) / optimum - 1


def _torch_lowrank(x: Tensor, rank: int) -> Svd:
    torch.manual_seed(0)  # svd_lowrank takes no generator
    U, sigma, V = torch.svd_lowrank(x, q=rank, niter=2)
    return Svd(U, sigma, V.mH)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["1024x1024", "4096x1024"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--spectra", nargs="+", default=list(SPECTRA), choices=list(SPECTRA))
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="svd_engines")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
