"""Copying memory: recall ten symbols after a long delay. projUNN-T and -D at k=1, and a free RNN.

    python benchmarks/reproduce/copying_memory.py [--delay 200] [--hidden 128]

Source: arXiv 2203.05483, section 6 (delays 1000 and 2000, hidden 190). A network that answers
blanks until the end and guesses then loses ``10 ln 8 / (delay + 20)``; the table shows the share
of that loss. Solved means below 0.1. The paper's curves fall to nought for both variants.

modReLU, nearly linear at its start, keeps what a ReLU clips away and learns many times faster.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

from running import Cell, Figure, both_variants, connected, parser, reproduce

SYMBOLS, LENGTH = 8, 10


def cells(options: argparse.Namespace) -> list[Cell]:
    """Both variants; the same cell set free; and a free tanh RNN."""
    common: dict[str, Any] = {
        "data": {
            "kind": "copying_memory",
            "delay": options.delay,
            "length": LENGTH,
            "symbols": SYMBOLS,
            "batches_per_epoch": 200,
        },
        "batch_size": options.batch,
        "epochs": options.epochs,
        "optimizer": {"name": "rmsprop", "learning_rate": options.learning_rate},
        "schedule": {"kind": "exponential", "factor_per_epoch": options.factor},
        "log_every": 100,
    }
    cell: dict[str, Any] = {"family": "rnn", "hidden": options.hidden, "activation": "modrelu"}
    projunn = common | {
        "method": "train.projunn",
        "network": cell,
        "learning_rate_divider": options.divider,
    }
    free = common | {"method": "train.dense", "clip_norm": 1.0}
    return [
        *both_variants(projunn, 0.0),
        Cell("free RNN, same cell", free | {"network": cell}, None),
        Cell("free RNN, tanh", free | {"network": cell | {"activation": "tanh"}}, None),
    ]


def main() -> None:
    """Run the batch."""
    arguments = parser(__doc__)
    arguments.add_argument("--delay", type=int, default=200)
    arguments.add_argument("--hidden", type=int, default=128)
    arguments.add_argument("--batch", type=int, default=20)
    arguments.add_argument("--epochs", type=int, default=15, help="of 200 batches")
    arguments.add_argument("--learning-rate", type=float, default=1e-3)
    arguments.add_argument("--divider", type=float, default=32)
    arguments.add_argument("--factor", type=float, default=0.98, help="of the rate, per epoch")
    options = arguments.parse_args()
    naive = LENGTH * math.log(SYMBOLS) / (options.delay + 2 * LENGTH)
    figure = Figure("test_loss", 1 / naive, more=("test_loss", "test_accuracy", "steps"))
    notes = f"Loss as a share of the naive loss {naive:.4f}; the accuracy counts blanks too."
    with connected(options) as client:
        name = f"copying_memory_{options.delay}"
        title = f"Copying memory, delay {options.delay}, hidden {options.hidden}"
        reproduce(client, name, title, cells(options), figure, seeds=options.seeds, notes=notes)


if __name__ == "__main__":
    main()
