"""Train dense first, then in factors whose bases stand still and whose core shrinks (OIALR).

python examples/train_oialr.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from running import arguments, connected, finish, follow, upload_digits


def main() -> None:
    """Train, follow ranks and stability, download, verify."""
    options = arguments(__doc__ or "", epochs=15)
    with connected() as client:
        steps = options.epochs * 22  # 1,438 digits to train on, in batches of 64
        job = follow(
            client,
            {
                "method": "train.oialr",
                "network": {"family": "mlp", "hidden": [128, 128, 128]},
                "data": upload_digits(client),
                "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.01},
                "delay": steps // 3,
                "period": max(1, steps // 12),
                "cutoff": 0.3,
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
