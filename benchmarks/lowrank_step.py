"""Time of one training step, 784 - w x 4 - 10, batch 256, float32, against dense Adam.

    python benchmarks/lowrank_step.py [--threads 2] [--rounds 12] [--out FILE [--append]]
        [--dlrt DIR]     the authors' repository COMPiLELab/DLRT
        [--oialr DIR]    the authors' repository Helmholtz-AI-Energy/OIALR

All contestants of one corner (w, r) are interleaved round by round; the figure of each is the
median over rounds of the mean over a few steps, and ratios are medians of per-round ratios, so
that a busy moment of the machine hits all alike. The ReLUs work in place, for all contestants.
The authors' code is imported from where it was cloned; without the options only our rows appear.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from stiefel.lowrank import LowRankIntegrator, LowRankLinear

BATCH = 256
CORNERS = [(500, 10), (500, 50), (1000, 10), (1000, 50)]
Step = Callable[[], None]


def sizes(width: int) -> list[int]:
    return [784, width, width, width, width]


def mlp(make: Callable[[int, int], nn.Module], width: int) -> nn.Sequential:
    pairs = zip(sizes(width), sizes(width)[1:], strict=False)
    layers = [part for m, n in pairs for part in (make(m, n), nn.ReLU(inplace=True))]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(BATCH, 784, generator=generator)
    return x, torch.randint(0, 10, (BATCH,), generator=generator)


def dense_adam(width: int) -> Step:
    net, (x, y) = mlp(nn.Linear, width), batch()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def ours(width: int, rank: int, *, phase: int = 5, variant: str = "exact") -> Step:
    net, (x, y) = mlp(lambda m, n: LowRankLinear(m, n, rank), width), batch()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    # max_rank = min_rank holds the rank, so that every step is timed at the same size.
    integrator = LowRankIntegrator(
        net, optimizer, phase=phase, variant=variant, min_rank=rank, max_rank=rank
    )

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        integrator.step()

    return step


def our_cores(width: int, rank: int) -> Step:
    """What training costs between two OIALR updates: frozen bases, trained core."""
    net, (x, y) = mlp(lambda m, n: LowRankLinear(m, n, rank, evaluation="auto"), width), batch()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def authors_dlrt(folder: Path, width: int, rank: int) -> Step:
    """Their adaptive layer and optimizer with Adam; the tolerance 0 would grow, so it is held."""
    layer = load(folder / "optimizer_KLS" / "Linear_layer_lr_new.py").Linear
    dlr_opt = load(folder / "optimizer_KLS" / "dlrt_optimizer.py").dlr_opt
    x, y = batch()

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = mlp(lambda m, n: layer(m, n, rank=rank), width)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    net = Net()
    optimizer = dlr_opt(net, tau=1e-3, theta=0.0, KLS_optim=torch.optim.Adam)
    low = [part for part in net.layer if getattr(part, "lr", False)]

    def forward(kind: str) -> Tensor:
        for part in low:
            part.step = kind
        return nn.functional.cross_entropy(net(x), y)

    def step() -> None:
        for part in low:
            part.dynamic_rank = rank
        optimizer.zero_grad()
        optimizer.preprocess_step()
        forward("K").backward()
        forward("L").backward()
        optimizer.step(closure=lambda: forward("S"))

    return step


def authors_oialr(folder: Path, width: int, rank: int) -> Step:
    """Their Linear layer between updates, cut to ``rank`` by their own shape update."""
    layer = load(folder / "src" / "madonna" / "models" / "oialr" / "linearusvh.py").SVDLinearUSVh

    def make(m: int, n: int) -> nn.Module:
        made = layer(m, n, reinit_shapes=True)
        made.inner_dim.fill_(rank)
        made._update_usvh_shapes()
        return made

    net, (x, y) = mlp(make, width), batch()
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def load(path: Path) -> types.ModuleType:
    # Their training loop imports a progress bar that the timed code never uses.
    sys.modules.setdefault("tqdm", types.SimpleNamespace(tqdm=iter))  # type: ignore[arg-type]
    spec = importlib.util.spec_from_file_location(f"authors_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contestants(width: int, rank: int, args: argparse.Namespace) -> dict[str, Step]:
    rows = {
        "dense Adam": dense_adam(width),
        "variant A, p=5": ours(width, rank),
        "variant A, p=10": ours(width, rank, phase=10),
        "variant A, p=5, parallel": ours(width, rank, variant="parallel"),
        "variant E (p=1)": ours(width, rank, phase=1),
        "OIALR": our_cores(width, rank),
        # What a step costs at any rank: activations, last layer, loss, the optimizer's calls.
        "OIALR, rank 1": our_cores(width, 1),
    }
    if args.dlrt:
        rows["authors' DLRT, adaptive"] = authors_dlrt(args.dlrt, width, rank)
    if args.oialr:
        rows["authors' OIALR"] = authors_oialr(args.oialr, width, rank)
    return rows


def measure(
    rows: dict[str, Step], rounds: int, steps: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    for step in rows.values():
        for _ in range(10):
            step()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(rounds):
        for name, step in rows.items():
            started = clock()
            for _ in range(steps):
                step()
            times[name].append((clock() - started) / steps * 1e3)
    return times


def table(width: int, rank: int, times: dict[str, list[float]]) -> list[dict[str, object]]:
    dense = times["dense Adam"]
    return [
        {
            "width": width,
            "rank": rank,
            "contestant": name,
            "ms": round(statistics.median(values), 3),
            "of_dense_adam": round(
                statistics.median(v / d for v, d in zip(values, dense, strict=True)), 3
            ),
        }
        for name, values in times.items()
    ]


def processor() -> str:
    """The CPU's name, as far as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{platform.machine()} {names[0] if names else 'CPU'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu counts this process's own time: with one thread, fair on a busy machine",
    )
    parser.add_argument("--corners", type=str, nargs="+", default=[f"{w},{r}" for w, r in CORNERS])
    parser.add_argument("--dlrt", type=Path)
    parser.add_argument("--oialr", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--append", action="store_true", help="keep the other corners of --out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    corners = [tuple(int(part) for part in corner.split(",")) for corner in args.corners]
    rows = []
    if args.append and args.out.exists():
        kept = json.loads(args.out.read_text())["rows"]
        rows = [row for row in kept if (row["width"], row["rank"]) not in corners]
    for width, rank in corners:
        part = table(
            width, rank, measure(contestants(width, rank, args), args.rounds, args.steps, clock)
        )
        for row in part:
            print(
                f"w={width} r={rank} {row['contestant']:26}",
                f"{row['ms']:8} ms {row['of_dense_adam']:6}",
                flush=True,
            )
        rows += part
    if args.out:
        record = {
            "command": f"python benchmarks/lowrank_step.py --threads {args.threads} "
            f"--rounds {args.rounds} --steps {args.steps} --clock {args.clock} "
            "--dlrt DIR --oialr DIR --corners W,R --append --out FILE, one corner after another",
            "torch": torch.__version__,
            "machine": f"{processor()}, {args.threads} threads, {args.clock} time",
            "rows": sorted(rows, key=lambda row: (row["width"], row["rank"])),
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
