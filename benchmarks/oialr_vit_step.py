"""Time of one step of the mini-ViT for CIFAR-10: dense AdamW against OIALR between its updates.

    python benchmarks/oialr_vit_step.py [--device cuda] [--widths 192 768] [--out FILE]

The networks are those of ``reproduce/oialr_vit.py`` with six heads; the paper's has width 768 and
patch 8. All contestants of a width take their turn in every round; the figure is the median over
rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from lowrank_step import Step, measure, processor
from torch import nn

from stiefel.lowrank import to_low_rank, trainable_share
from stiefel.models import build_network
from stiefel.models.adapter import architecture
from stiefel.specs import parse_spec
from stiefel.specs.signature import Signature


def network(width: int, patch: int) -> nn.Module:
    spec = {
        "method": "train.dense",
        "network": {
            "family": "vit",
            "patch": patch,
            "depth": 6,
            "heads": 6,
            "width": width,
            "hidden": 2 * width,
        },
        "data": {"kind": "parquet", "train": "art_0", "input": "img", "label": "label"},
    }
    signature = Signature(kind="image", shape=(3, 32, 32), outputs=10)
    return build_network(parse_spec(spec).network, signature, seed=0)


def stepping(net: nn.Module, batch: int, device: str) -> Step:
    net.to(device)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], fused=True)
    x, y = torch.randn(batch, 3, 32, 32).to(device), torch.randint(0, 10, (batch,)).to(device)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def after_the_device() -> float:
    """Wall time once all that was launched is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rows(width: int, patch: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    dense = network(width, patch)
    total = sum(p.numel() for p in dense.parameters())
    steps, shares = {"dense": stepping(dense, args.batch, args.device)}, {"dense": 1.0}
    for part in args.parts:
        net = network(width, patch)
        rank = max(1, int(part * width))
        to_low_rank(architecture(net), rank=rank, evaluation="auto")
        name = f"OIALR, rank {rank}"
        steps[name] = stepping(net, args.batch, args.device)
        shares[name] = trainable_share(net, total)
    turns = measure(steps, args.rounds, args.count, after_the_device)
    times = {name: statistics.median(values) for name, values in turns.items()}
    return [
        {
            "width": width,
            "patch": patch,
            "batch": args.batch,
            "step": name,
            "ms": round(taken, 3),
            "of_dense": round(taken / times["dense"], 3),
            "trainable_share": round(shares[name], 4),
        }
        for name, taken in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--widths", type=int, nargs="+", default=[192, 768])
    parser.add_argument("--patches", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--parts", type=float, nargs="+", default=[0.1, 0.25])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found = []
    for width, patch in zip(args.widths, args.patches, strict=True):
        found += rows(width, patch, args)
        for row in found[-1 - len(args.parts) :]:
            print(row, flush=True)
    if args.out:
        record = {
            "command": f"python benchmarks/oialr_vit_step.py --device {args.device} "
            f"--widths {' '.join(map(str, args.widths))} "
            f"--patches {' '.join(map(str, args.patches))} "
            f"--rounds {args.rounds} --count {args.count} --batch {args.batch} --out FILE",
            "torch": torch.__version__,
            "machine": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
            "rows": found,
        }
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
