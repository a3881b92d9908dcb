"""The adding problem: the sum of two marked numbers among many. projUNN-T, -D, and a free RNN.

    python benchmarks/reproduce/adding_problem.py [--length 200] [--hidden 64]

Source: arXiv 2203.05483, section 6 (lengths 200 and 750, hidden 170). Answering 1 whatever comes
has a mean squared error of 0.167. Solved means below 0.01; the paper's curves fall to nought.

The paper starts a ReLU from the identity and learns U at a 32nd of the rate. Here modReLU starts
from rotations, gradients are clipped and U learns at the rate of the rest, which is faster.
"""

from __future__ import annotations

import argparse
from typing import Any

from running import Cell, Figure, both_variants, connected, parser, reproduce


def cells(options: argparse.Namespace) -> list[Cell]:
    """Both variants; the same cell set free; and a free tanh RNN at the rate that suits it."""
    common: dict[str, Any] = {
        "data": {
            "kind": "adding_problem",
            "length": options.length,
            "train_examples": 50_000,
            "test_examples": 2_000,
        },
        "batch_size": options.batch,
        "epochs": options.epochs,
        "optimizer": {"name": "adam", "learning_rate": options.learning_rate},
        "schedule": {"kind": "cosine", "warmup_steps": options.warmup},
        "clip_norm": 1.0,
        "log_every": 100,
    }
    rnn: dict[str, Any] = {"family": "rnn", "hidden": options.hidden}
    cell = rnn | {"activation": "modrelu", "initialisation": "cayley"}
    projunn = common | {
        "method": "train.projunn",
        "network": cell,
        "learning_rate_divider": options.divider,
    }
    free = common | {"method": "train.dense"}
    tanh = free | {
        "network": rnn | {"activation": "tanh"},
        "optimizer": {"name": "rmsprop", "learning_rate": options.tanh_rate},
    }
    return [
        *both_variants(projunn, 0.0),
        Cell("free RNN, same cell", free | {"network": cell}, None),
        Cell("free RNN, tanh", tanh, None),
    ]


def main() -> None:
    """Run the batch."""
    arguments = parser(__doc__)
    arguments.add_argument("--length", type=int, default=200)
    arguments.add_argument("--hidden", type=int, default=64)
    arguments.add_argument("--batch", type=int, default=50)
    arguments.add_argument("--epochs", type=int, default=24, help="of 1000 batches")
    arguments.add_argument("--learning-rate", type=float, default=3e-3)
    arguments.add_argument("--warmup", type=int, default=200, help="batches of rising rate")
    arguments.add_argument("--divider", type=float, default=1.0)
    arguments.add_argument("--tanh-rate", type=float, default=1e-3, help="of the free tanh RNN")
    options = arguments.parse_args()
    figure = Figure("test_loss", 1.0, more=("steps",))
    with connected(options) as client:
        title = f"Adding problem, length {options.length}, hidden {options.hidden}"
        reproduce(
            client,
            f"adding_problem_{options.length}",
            title,
            cells(options),
            figure,
            seeds=options.seeds,
            notes="Mean squared error on the test set; 0.167 is chance.",
        )


if __name__ == "__main__":
    main()
