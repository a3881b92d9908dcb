"""OIALR on a small vision transformer for CIFAR-10, beside the same network trained dense.

    python benchmarks/reproduce/oialr_vit.py --data FOLDER [--width 128] [--epochs 10]

Source: arXiv 2401.08505, mini-ViT on CIFAR-10 (patch 8, depth 6, width 768, 300 epochs): 85.2 %
dense, 83.1 with OIALR, 86.3 tuned at 9 % trained parameters. What can be compared at a smaller
size is the difference to dense. FOLDER holds train.parquet and test.parquet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from running import Cell, Figure, connected, parser, reproduce, upload


def cells(options: argparse.Namespace, data: dict[str, Any]) -> list[Cell]:
    """The dense network, and OIALR at every cutoff."""
    steps = options.epochs * (50_000 // options.batch)
    common: dict[str, Any] = {
        "network": {
            "family": "vit",
            "patch": options.patch,
            "depth": options.depth,
            "heads": options.heads,
            "width": options.width,
            "hidden": 2 * options.width,
        },
        "data": data,
        "optimizer": {"name": "adamw", "learning_rate": options.rate, "weight_decay": 0.01},
        "schedule": {"kind": "cosine", "warmup_steps": steps // 20},
        "clip_norm": 5.0,
        "batch_size": options.batch,
        "epochs": options.epochs,
        "log_every": 50,
    }
    made = [Cell("dense", common | {"method": "train.dense"}, 85.2)]
    for cutoff in options.cutoffs:
        oialr = common | {
            "method": "train.oialr",
            "delay": steps // 4,
            "period": steps // 20,
            "cutoff": cutoff,
        }
        made.append(Cell(f"OIALR, cutoff {cutoff}", oialr, 83.1))
    return made


def main() -> None:
    """Run the batch."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--patch", type=int, default=8)
    arguments.add_argument("--depth", type=int, default=6)
    arguments.add_argument("--heads", type=int, default=4)
    arguments.add_argument("--width", type=int, default=128)
    arguments.add_argument("--batch", type=int, default=128)
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--rate", type=float, default=1e-3)
    arguments.add_argument("--name", default="oialr_vit")
    arguments.add_argument("--cutoffs", type=float, nargs="+", default=[0.15, 0.3])
    options = arguments.parse_args()
    notes = (
        f"Width {options.width} and {options.epochs} epochs where the paper has 768 and 300: "
        "compare the differences to dense, not the accuracies."
    )
    with connected(options) as client:
        data = {
            "kind": "parquet",
            "train": upload(client, options.data / "train.parquet"),
            "test": upload(client, options.data / "test.parquet"),
            "input": "img",
            "label": "label",
            "augment": "flip_shift",
        }
        figure = Figure(more=("parameters_saved", "trainable_share"))
        title = f"Mini-ViT on CIFAR-10, width {options.width}, on {options.device}"
        made = cells(options, data)
        reproduce(client, options.name, title, made, figure, seeds=options.seeds, notes=notes)


if __name__ == "__main__":
    main()
