"""One projUNN step beside its peers, as times, ratios and in-place passes over the matrix.

    python benchmarks/projunn_step.py --reference PATH --sizes 2048 --dtypes float32 --append

All candidates run in turn, each in a process of its own. ``pass`` is ``W.mul_(c)``: one read and
one write of the matrix. Our step includes drift control of one column. Peers step as their users
do: forward access of the weight, backward, ``torch.optim.SGD``. ``--sittings`` repeats the
whole comparison in new processes and takes the median: whether a process finds its matrix in a
cache that other machines share differs from one to the next. ``--append`` keeps the other sizes
and dtypes of the result file.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from side_by_side import REFERENCE_HELP, apart, reference, write
from torch import Tensor, nn

from stiefel.unitary import rank_k_update_, step_
from stiefel.unitary.initialisation import haar_

DTYPES = {"float32": torch.float32, "complex64": torch.complex64}


Call = Callable[[], Any]


def matrix(n: int, dtype: str) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return haar_(torch.empty(n, n, dtype=DTYPES[dtype]), generator=generator)


def step(n: int, dtype: str, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + k)
    a, b = torch.randn(2, k, n, dtype=DTYPES[dtype], generator=generator).mT
    return a * (0.1 / n), b


def passing(n: int, dtype: str) -> Call:
    W = matrix(n, dtype)
    return lambda: W.mul_(1.0)


def ours(n: int, dtype: str, k: int, variant: Any) -> Call:
    W, (a, b), cursor = matrix(n, dtype), step(n, dtype, k), [0]

    def call() -> None:
        cursor[0] = (cursor[0] + 1) % n
        step_(W, a, b, variant=variant, columns=range(cursor[0], cursor[0] + 1))

    return call


def other(n: int, dtype: str, k: int, move: Callable[[Tensor, Tensor, Tensor], Any]) -> Call:
    W, (a, b) = matrix(n, dtype), step(n, dtype, k)
    return lambda: move(W, a, b)


def peer(n: int, name: str, device: str = "cpu") -> Call:
    G = torch.randn(n, n, generator=torch.Generator().manual_seed(2)).to(device) / n
    linear = nn.Linear(n, n, bias=False, device=device)
    if name == "geotorch":
        import geotorch

        geotorch.orthogonal(linear, "weight")
    else:
        linear = nn.utils.parametrizations.orthogonal(linear, orthogonal_map=name)
    optimizer = torch.optim.SGD(linear.parameters(), lr=1e-3)

    def call() -> None:
        optimizer.zero_grad()
        (linear.weight * G).sum().backward()
        optimizer.step()

    return call


def candidates(n: int, dtype: str, authors: Any, options: Any) -> dict[str, Callable[[], Call]]:
    """Return what builds each candidate, in the process that is to run it."""
    builds: dict[str, Callable[[], Call]] = {"pass": partial(passing, n, dtype)}
    for k in (1, 8):
        builds[f"T k={k}"] = partial(ours, n, dtype, k, "tangent")
        builds[f"D k={k}"] = partial(ours, n, dtype, k, "direct")
        builds[f"T k={k} eager"] = partial(other, n, dtype, k, rank_k_update_)
        if authors is not None:
            builds[f"authors T k={k}"] = partial(other, n, dtype, k, authors.projUNN_T)
            builds[f"authors D k={k}"] = partial(other, n, dtype, k, authors.projUNN_D)
    if dtype == "float32" and n <= options.largest_peer:
        builds.update({name: partial(peer, n, name) for name in options.peers})
    return builds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help=REFERENCE_HELP)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "complex64"])
    parser.add_argument("--peers", nargs="*", default=["cayley", "matrix_exp", "geotorch"])
    parser.add_argument("--largest-peer", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--sittings", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--append", action="store_true")
    parser.add_argument("--name", default="projunn_step")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    # The authors cast complex to real on the way, which torch warns about.
    warnings.simplefilter("ignore")
    authors = reference(options.reference)
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for n in options.sizes:
            builds = candidates(n, dtype, authors, options)
            sittings = [apart(builds, seconds=options.seconds) for _ in range(options.sittings)]
            times = {name: statistics.median(s[name] for s in sittings) for name in builds}
            for name, taken in times.items():
                row = {"dtype": dtype, "N": n, "step": name, "ms": taken}
                row["passes"] = taken / times["pass"]
                rank = 8 if "k=8" in name else 1
                row["over our T"] = taken / times[f"T k={rank}"]
                row["sittings, ms"] = [sitting[name] for sitting in sittings]
                rows.append(row)
                print(row, flush=True)
    same = ("dtype", "N") if options.append else ()
    write(options.name, title="One projUNN step beside its peers", rows=rows, same=same)


if __name__ == "__main__":
    main()
