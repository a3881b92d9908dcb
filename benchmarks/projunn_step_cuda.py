"""One projUNN step on a CUDA device beside its peers, as times and as shares of measured limits.

    python benchmarks/projunn_step_cuda.py --reference PATH [--sizes 1024 2048 4096 8192]

Each candidate works through copies of its matrix in turn, together larger than the device's cache,
so that every step finds its matrix in device memory. ``ms``: host and device together, steps
called one after another from Python; ``graph ms``: the same calls as a replayed CUDA graph, which
leaves the device's own time (empty: it cannot be captured, because it waits for the host). Both are
medians over rounds in which all candidates take their turn, by CUDA events. ``limit``: a step must
read W, read it again and write it, 12 N^2 bytes; this over the bandwidth of a large copy, as a
share of ``graph ms``. ``GEMM``: products of two N x N matrices in float32, TF32 off, that take as
long as the step.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from projunn_step import DTYPES, peer
from side_by_side import REFERENCE_HELP, reference, write
from torch import Tensor

from stiefel.unitary import rank_k_update_, step_

Step = Callable[[], Any]


def matrices(n: int, dtype: str, least: int) -> list[Tensor]:
    """Orthonormal matrices of at least ``least`` bytes together, or one."""
    W = torch.linalg.qr(torch.randn(n, n, dtype=DTYPES[dtype], device="cuda")).Q.contiguous()
    count = max(1, min(64, -(-least // (W.numel() * W.element_size()))))
    return [W.clone() for _ in range(count)]


def factors(n: int, dtype: str, k: int) -> tuple[Tensor, Tensor]:
    """A step as a layer hands it over: transposed rows."""
    a, b = torch.randn(2, k, n, dtype=DTYPES[dtype], device="cuda").mT
    return a * (0.1 / n), b


def ours(W: Tensor, k: int, variant: Any, dtype: str) -> Step:
    n, (a, b), cursor = W.shape[-1], factors(W.shape[-1], dtype, k), [0]

    def call() -> None:
        cursor[0] = (cursor[0] + 1) % n
        step_(W, a, b, variant=variant, columns=range(cursor[0], cursor[0] + 1))

    return call


def other(W: Tensor, k: int, move: Callable[[Tensor, Tensor, Tensor], Any], dtype: str) -> Step:
    a, b = factors(W.shape[-1], dtype, k)
    return lambda: move(W, a, b)


def candidates(n: int, dtype: str, authors: Any, options: Any) -> Iterator[tuple[str, list[Step]]]:
    """What is timed: for each candidate one call per copy of its matrix."""
    copies = matrices(n, dtype, options.megabytes << 20)
    yield "W.mul_(1)", [lambda W=W: W.mul_(1.0) for W in copies]  # type: ignore[misc]
    yield "W @ W", [lambda W=W: torch.mm(W, W) for W in copies[:2]]  # type: ignore[misc]
    for k in options.ranks:
        for name, variant in (("T", "tangent"), ("D", "direct")):
            yield f"{name} k={k}", [ours(W, k, variant, dtype) for W in copies]
        yield f"T k={k} eager", [other(W, k, rank_k_update_, dtype) for W in copies]
        if authors is not None:
            for name in ("T", "D"):
                move = getattr(authors, f"projUNN_{name}")
                yield f"authors {name} k={k}", [other(W, k, move, dtype) for W in copies]
    if dtype == "float32" and n <= options.largest_peer:
        for name in options.peers:
            yield name, [peer(n, name, "cuda")]


def milliseconds(steps: list[Step], budget: float) -> float:
    """Milliseconds per call, over as many calls as fill ``budget`` seconds."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    rounds, total = 1, 0.0
    while True:
        begin.record()
        for _ in range(rounds):
            for step in steps:
                step()
        end.record()
        end.synchronize()
        total = begin.elapsed_time(end)
        if total >= 1e3 * budget or rounds >= 4096:
            return total / rounds / len(steps)
        rounds = max(2 * rounds, int(rounds * 1e3 * budget / max(total, 1e-3)))


def captured(steps: list[Step]) -> Step | None:
    """Return the steps as one replayed graph, or None where they wait for the host."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            for step in steps:
                step()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def table(n: int, dtype: str, authors: Any, options: Any) -> list[dict[str, Any]]:
    runs: dict[str, list[Step]] = {}
    graphs: dict[str, tuple[Step, int]] = {}
    for name, steps in candidates(n, dtype, authors, options):
        try:
            for step in (*steps, steps[0]):  # compiles, and warms the allocator
                step()
            torch.cuda.synchronize()
        except RuntimeError as error:
            print(name, "failed:", str(error).splitlines()[0])
            continue
        runs[name] = steps
        if not name.startswith("authors") and name not in options.peers:
            replay = captured(steps)
            if replay is not None:
                graphs[name] = (replay, len(steps))
    times: dict[str, list[float]] = {name: [] for name in runs}
    device: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(options.rounds):
        for name, steps in runs.items():
            times[name].append(milliseconds(steps, options.turn))
        for name, (replay, count) in graphs.items():
            device[name].append(milliseconds([replay], options.turn) / count)
    middle = {name: statistics.median(values) for name, values in times.items()}
    alone = {name: statistics.median(values) for name, values in device.items()}
    floor = 12 * n * n * (2 if dtype == "complex64" else 1) / options.bandwidth * 1e3
    rows = []
    for name, taken in middle.items():
        inside = alone.get(name)
        stepping = name not in ("W.mul_(1)", "W @ W")
        rows.append(
            {
                "dtype": dtype,
                "N": n,
                "step": name,
                "ms": taken,
                "graph ms": inside if inside is not None else "",
                "limit": floor / inside if inside and stepping else "",
                "GEMM": (inside or taken) / (alone.get("W @ W") or middle["W @ W"]),
                "over our T": taken / middle[f"T k={8 if 'k=8' in name else 1}"],
            }
        )
        print(rows[-1], flush=True)
    return rows


def bandwidth() -> float:
    """Bytes per second of a copy of 2 GiB, read and written."""
    source = torch.empty(1 << 29, device="cuda").uniform_()
    target = torch.empty_like(source)
    taken = [milliseconds([lambda: target.copy_(source)], 0.02) for _ in range(5)]
    return 2 * source.numel() * 4 / statistics.median(taken) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reference", help=REFERENCE_HELP)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--peers", nargs="*", default=["cayley", "matrix_exp", "geotorch"])
    parser.add_argument("--largest-peer", type=int, default=4096)
    parser.add_argument("--megabytes", type=int, default=256, help="of all copies of a matrix")
    parser.add_argument("--turn", type=float, default=0.02, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the authors cast complex to real, which torch warns about
    authors = reference(options.reference)
    options.bandwidth = bandwidth()
    rows: list[dict[str, Any]] = []
    for dtype in options.dtypes:
        for n in options.sizes:
            rows += table(n, dtype, authors, options)
    notes = (
        f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}; a copy of 2 GiB moves "
        f"{options.bandwidth / 1e12:.2f} TB/s, counting bytes read and written."
    )
    same = ("dtype", "N") if options.append else ()
    title = "One projUNN step on a GPU beside its peers"
    write("projunn_step_cuda", title=title, rows=rows, notes=notes, same=same)


if __name__ == "__main__":
    main()
