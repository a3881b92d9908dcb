"""Train a network that finds the rank of every layer while it trains (DLRT).

python examples/train_dlrt.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from running import arguments, connected, finish, follow, upload_digits


def main() -> None:
    """Train, follow the ranks, download, verify."""
    options = arguments(__doc__ or "", epochs=15)
    with connected() as client:
        job = follow(
            client,
            {
                "method": "train.dlrt",
                "network": {"family": "mlp", "hidden": [128, 128, 128]},
                "data": upload_digits(client),
                "truncation_tolerance": 0.15,
                "epochs": options.epochs,
                "batch_size": 64,
                "log_every": 50,
            },
        )
        figures = finish(client, job, options.output)
    saved = figures["parameters_saved"]
    print(f"accuracy {figures['test_accuracy']:.3f} with {saved:.0%} fewer parameters")


if __name__ == "__main__":
    main()
