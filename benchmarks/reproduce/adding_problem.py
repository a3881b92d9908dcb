"""The adding problem: the sum of two marked numbers among many. projUNN-T, -D, and a free RNN.

    python benchmarks/reproduce/adding_problem.py [--length 200] [--hidden 128]

Source: arXiv 2203.05483, section 6 (lengths 200 and 750, hidden 170). Answering 1 whatever comes
has a mean squared error of 0.167. Solved means below 0.01; the paper's curves fall to nought.
"""

from __future__ import annotations

import argparse
from typing import Any

from running import Cell, Figure, both_variants, connected, parser, reproduce


def cells(options: argparse.Namespace) -> list[Cell]:
    """Both variants from the identity, and free RNNs."""
    common: dict[str, Any] = {
        "data": {
            "kind": "adding_problem",
            "length": options.length,
            "train_examples": 50_000,
            "test_examples": 2_000,
        },
        "batch_size": options.batch,
        "epochs": options.epochs,
        "optimizer": {"name": "rmsprop", "learning_rate": options.learning_rate},
        "schedule": {"kind": "exponential", "factor_per_epoch": options.factor},
        "clip_norm": 1.0,
        "log_every": 100,
    }
    network: dict[str, Any] = {"family": "rnn", "hidden": options.hidden, "activation": "relu"}
    projunn = common | {
        "method": "train.projunn",
        "network": network | {"initialisation": "identity"},
        "learning_rate_divider": options.divider,
    }
    made = both_variants(projunn, 0.0)
    free = common | {"method": "train.dense", "network": network | {"activation": "tanh"}}
    return [*made, Cell("free RNN, tanh", free, None)]


def main() -> None:
    """Run the batch."""
    arguments = parser(__doc__)
    arguments.add_argument("--length", type=int, default=200)
    arguments.add_argument("--hidden", type=int, default=128)
    arguments.add_argument("--batch", type=int, default=50)
    arguments.add_argument("--epochs", type=int, default=16, help="of 1000 batches")
    arguments.add_argument("--learning-rate", type=float, default=1e-3)
    arguments.add_argument("--divider", type=float, default=4)
    arguments.add_argument("--factor", type=float, default=0.94, help="of the rate, per epoch")
    options = arguments.parse_args()
    figure = Figure("test_loss", 1.0, more=("steps",))
    with connected(options) as client:
        name = f"adding_problem_{options.length}"
        title = f"Adding problem, length {options.length}, hidden {options.hidden}"
        reproduce(
            client,
            name,
            title,
            cells(options),
            figure,
            seeds=options.seeds,
            notes="Mean squared error on the test set; 0.167 is chance.",
        )


if __name__ == "__main__":
    main()
