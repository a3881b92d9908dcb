"""A paper's table from one request: low-rank training over its tolerance, beside a dense baseline.

python examples/sweep.py [--epochs N] [--output FOLDER]
"""

from __future__ import annotations

from running import arguments, connected, upload_digits


def main() -> None:
    """Submit the grid, wait for all jobs, print and keep the table."""
    options = arguments(__doc__ or "", epochs=20)
    with connected() as client:
        base = {
            "network": {"family": "mlp", "hidden": [128, 128]},
            "data": upload_digits(client),
            "optimizer": {"learning_rate": 5e-3},
            "epochs": options.epochs,
            "batch_size": 64,
            "log_every": 50,
        }
        seeds = [0, 1]
        dense = {"custom_id": "dense", "spec": {**base, "method": "train.dense"}}
        batch = client.batches.create(
            {**base, "method": "train.dlrt"},
            grid={"truncation_tolerance": [0.1, 0.3], "seed": seeds},
            jobs=[{**dense, "grid": {"seed": seeds}}],
            name="Tolerance of DLRT on the digits",
        )
        print(f"{batch.id}: {batch.size} jobs")
        batch = client.batches.wait(batch.id)
        table = client.batches.table(batch.id)
        print(table)
        if options.output:
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "table.md").write_text(table)
            (options.output / "table.csv").write_text(client.batches.table(batch.id, "csv"))
    if not batch.succeeded:
        raise SystemExit(f"{batch.status}: {batch.counts}")


if __name__ == "__main__":
    main()
