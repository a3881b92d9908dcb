"""One projUNN step beside its peers, as times, ratios and in-place passes over the matrix.

    python benchmarks/projunn_step.py --reference PATH --sizes 2048 --dtypes float32 --append

All candidates run in turn in one process. ``pass`` is ``W.mul_(c)``: one read and one write of
the matrix. Our step includes drift control of one column. Peers step as their users do: forward
access of the weight, backward, ``torch.optim.SGD``. ``--append`` keeps the other sizes and dtypes
of the result file.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from side_by_side import REFERENCE_HELP, interleaved, reference, write
from torch import Tensor, nn

from stiefel.unitary import rank_k_update_, step_
from stiefel.unitary.initialisation import haar_

DTYPES = {"float32": torch.float32, "complex64": torch.complex64}


def ours(W: Tensor, a: Tensor, b: Tensor, variant: Any) -> Callable[[], Any]:
    moved, cursor = W.clone(), [0]

    def call() -> None:
        cursor[0] = (cursor[0] + 1) % W.shape[1]
        step_(moved, a, b, variant=variant, columns=range(cursor[0], cursor[0] + 1))

    return call


def peers(n: int, which: list[str]) -> dict[str, Callable[[], Any]]:
    G = torch.randn(n, n, generator=torch.Generator().manual_seed(2)) / n
    found: dict[str, Callable[[], Any]] = {}
    for name in which:
        linear = nn.Linear(n, n, bias=False)
        if name == "geotorch":
            import geotorch

            geotorch.orthogonal(linear, "weight")
        else:
            linear = nn.utils.parametrizations.orthogonal(linear, orthogonal_map=name)
        found[name] = _peer_step(linear, G)
    return found


def _peer_step(linear: nn.Module, G: Tensor) -> Callable[[], Any]:
    optimizer = torch.optim.SGD(linear.parameters(), lr=1e-3)

    def call() -> None:
        optimizer.zero_grad()
        (linear.weight * G).sum().backward()
        optimizer.step()

    return call


def candidates(n: int, dtype: str, authors: Any, options: Any) -> dict[str, Callable[[], Any]]:
    generator = torch.Generator().manual_seed(n)
    W = haar_(torch.empty(n, n, dtype=DTYPES[dtype]), generator=generator)
    factors = {}
    for k in (1, 8):
        a = torch.randn(k, n, dtype=W.dtype, generator=generator).mT * (0.1 / n)
        b = torch.randn(k, n, dtype=W.dtype, generator=generator).mT
        factors[k] = (a, b)
    passed = W.clone()
    calls: dict[str, Callable[[], Any]] = {"pass": lambda: passed.mul_(1.0)}
    for k, (a, b) in factors.items():
        calls[f"T k={k}"] = ours(W, a, b, "tangent")
        calls[f"D k={k}"] = ours(W, a, b, "direct")
        eager = W.clone()
        calls[f"T k={k} eager"] = _bound(rank_k_update_, eager, a, b)
        if authors is not None:
            calls[f"authors T k={k}"] = _bound(authors.projUNN_T, W, a, b)
            calls[f"authors D k={k}"] = _bound(authors.projUNN_D, W, a, b)
    if dtype == "float32":
        calls.update(peers(n, [p for p in options.peers if n <= options.largest_peer]))
    return calls


def _bound(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: function(*arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help=REFERENCE_HELP)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024, 2048])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "complex64"])
    parser.add_argument("--peers", nargs="*", default=["cayley", "matrix_exp", "geotorch"])
    parser.add_argument("--largest-peer", type=int, default=2048)
    parser.add_argument("--seconds", type=float, default=30.0)
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
            times = interleaved(candidates(n, dtype, authors, options), seconds=options.seconds)
            for name, taken in times.items():
                row = {"dtype": dtype, "N": n, "step": name, "ms": taken}
                row["passes"] = taken / times["pass"]
                rank = 8 if "k=8" in name else 1
                row["over our T"] = taken / times[f"T k={rank}"]
                rows.append(row)
                print(row, flush=True)
    same = ("dtype", "N") if options.append else ()
    write(options.name, title="One projUNN step beside its peers", rows=rows, same=same)


if __name__ == "__main__":
    main()
