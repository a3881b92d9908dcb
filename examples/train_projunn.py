"""Train a recurrent network whose recurrence stays orthogonal to remember symbols (projUNN).

    python examples/train_projunn.py [--epochs N] [--output FOLDER]

The task is made by the service: read a few symbols, wait, repeat them. A network that has learnt
nothing but to wait loses length * ln(symbols) / steps.
"""

from __future__ import annotations

import math

from running import arguments, connected, finish, follow


def main() -> None:
    """Train, follow loss and defect, download, verify."""
    options = arguments(__doc__ or "", epochs=20)
    delay, length, symbols = 20, 3, 4
    with connected() as client:
        job = follow(
            client,
            {
                "method": "train.projunn",
                "network": {"family": "rnn", "hidden": 64, "activation": "relu"},
                "data": {
                    "kind": "copying_memory",
                    "delay": delay,
                    "length": length,
                    "symbols": symbols,
                    "batches_per_epoch": 50,
                },
                "rank": 1,
                "optimizer": {"name": "rmsprop", "learning_rate": 2e-3},
                "learning_rate_divider": 8,
                "schedule": {"kind": "constant"},
                "epochs": options.epochs,
                "log_every": 50,
            },
        )
        figures = finish(client, job, options.output)
    waiting = length * math.log(symbols) / (delay + 2 * length)
    print(f"loss {figures['test_loss']:.4f}; by waiting alone {waiting:.4f}")
    print(f"orthogonality defect {figures['defect/recurrence.frame']:.1e}")


if __name__ == "__main__":
    main()
