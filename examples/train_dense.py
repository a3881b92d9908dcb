"""Train an ordinary network on scikit-learn's digits: the baseline of the other examples.

python examples/train_dense.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from running import arguments, connected, finish, follow, upload_digits


def main() -> None:
    """Train, follow, download, verify."""
    options = arguments(__doc__ or "", epochs=15)
    with connected() as client:
        job = follow(
            client,
            {
                "method": "train.dense",
                "network": {"family": "mlp", "hidden": [64, 64]},
                "data": upload_digits(client),
                "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01},
                "epochs": options.epochs,
                "batch_size": 64,
                "log_every": 50,
            },
        )
        figures = finish(client, job, options.output)
    print(f"accuracy {figures['test_accuracy']:.3f}")
    print(f"{figures['parameters_after']:,} parameters")


if __name__ == "__main__":
    main()
