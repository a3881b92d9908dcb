"""OIALR against dense training of a small vision transformer on the 8 x 8 digits.

    python benchmarks/oialr_vit.py [--seeds 0 1 2] [--epochs 60] [--out FILE]

Both runs share seed, data order and recipe (AdamW, warm-up, cosine). Reported: test accuracy of
the last epoch, trained parameters as a share of the dense network's, and seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from stiefel.lowrank import OialrSchedule, to_low_rank, trainable_share

BATCH = 64


class Vit(nn.Module):
    """Patches of 2 x 2, four pre-norm blocks, mean pooling."""

    def __init__(self, width: int = 96, depth: int = 4) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.zeros(16, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(B, 64)`` pixels to class scores."""
        patches = x.reshape(-1, 4, 2, 4, 2).transpose(2, 3).reshape(-1, 16, 4)
        tokens = self.patch(patches) + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens).mean(1))


def data() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]


def run(seed: int, args: argparse.Namespace, *, adaptive: bool) -> dict[str, object]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net: nn.Module = Vit()
    dense = sum(p.numel() for p in net.parameters())
    if adaptive:
        net = to_low_rank(net, dense=True, evaluation="auto", exclude=["patch"]).model
    optimizer = torch.optim.AdamW(net.parameters(), lr=args.lr, weight_decay=0.01, fused=True)
    steps = args.epochs * math.ceil(1347 / BATCH)
    schedule = (
        OialrSchedule(
            net,
            optimizer,
            delay=int(args.delay * steps),
            period=steps // 20,
            cutoff=args.cutoff,
            share=1.0,
        )
        if adaptive
        else optimizer
    )
    x, y = data()
    generator = torch.Generator().manual_seed(seed)
    started, step = time.perf_counter(), 0
    for _ in range(args.epochs):
        net.train()
        for index in torch.randperm(1347, generator=generator).split(BATCH):
            for group in optimizer.param_groups:
                rise = min(1.0, (step + 1) / (0.05 * steps))
                group["lr"] = args.lr * rise * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[index]), y[index]).backward()
            schedule.step()
            step += 1
    seconds = time.perf_counter() - started
    net.eval()
    with torch.no_grad():
        hits = (net(x[1347:]).argmax(1) == y[1347:]).double().mean()
    return {
        "seed": seed,
        "kind": "oialr" if adaptive else "dense",
        "accuracy": round(100 * float(hits), 2),
        "trainable_share": round(trainable_share(net, dense), 4),
        "ranks": schedule.ranks if adaptive else None,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--delay", type=float, default=0.25, help="share of training that is dense")
    parser.add_argument("--cutoff", type=float, default=0.3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    runs = []
    for seed in args.seeds:
        for adaptive in (False, True):
            runs.append(run(seed, args, adaptive=adaptive))
            print(json.dumps(runs[-1]), flush=True)
    mean = {
        kind: statistics.mean(float(r["accuracy"]) for r in runs if r["kind"] == kind)
        for kind in ("dense", "oialr")
    }
    print(mean)
    if args.out:
        record = {
            "command": f"python benchmarks/oialr_vit.py --epochs {args.epochs} "
            f"--delay {args.delay} --cutoff {args.cutoff} --threads {args.threads}",
            "torch": torch.__version__,
            "machine": platform.machine(),
            "mean_accuracy": mean,
            "runs": runs,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
