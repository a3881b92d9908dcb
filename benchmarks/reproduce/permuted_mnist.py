"""MNIST pixel by pixel in one fixed random order, by unitary recurrent networks.

    python benchmarks/reproduce/permuted_mnist.py --data FOLDER [--side 28] [--hidden 116]

Source: arXiv 2203.05483, table of permuted MNIST (hidden 116 to 512, 200 epochs, modReLU). With
``--side 14`` every 2 x 2 pixels are averaged, for a quarter of the steps. FOLDER holds
train.parquet and test.parquet in the Hugging Face layout.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
from PIL import Image
from running import Cell, Figure, connected, parser, reproduce, upload

# First and second block of the paper's columns, for k = 1 and k = 16; the second is T by inference.
PAPER = {
    116: {"D": {1: 92.8, 16: 93.2}, "T": {1: 92.5, 16: 92.8}},
    170: {"D": {1: 94.3, 16: 94.3}, "T": {1: 94.3, 16: 94.3}},
    360: {"D": {1: 96.4, 16: 96.5}, "T": {1: 96.3, 16: 96.4}},
    512: {"D": {1: 97.0, 16: 97.0}, "T": {1: 96.7, 16: 96.7}},
}


def pooled(client: httpx.Client, path: Path, side: int) -> str:
    """Upload a split as arrays ``x`` (N, 1, side, side) and ``y``; its artifact id."""
    table = pq.read_table(path)
    rows = [np.asarray(Image.open(io.BytesIO(row["bytes"]))) for row in table["image"].to_pylist()]
    images = np.stack(rows).astype(np.float32) / 255
    factor = images.shape[1] // side
    small = images.reshape(-1, 1, side, factor, side, factor).mean(axis=(3, 5), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{path.stem}-{side}.npz"
        np.savez(file, x=small, y=np.asarray(table["label"]))
        return upload(client, file)


def cells(client: httpx.Client, options: argparse.Namespace) -> list[Cell]:
    """T and D at every rank asked for."""
    data: dict[str, Any] = {
        "kind": "arrays",
        "train": pooled(client, options.data / "train.parquet", options.side),
        "test": pooled(client, options.data / "test.parquet", options.side),
        "input": "x",
        "label": "y",
        "as_sequence": True,
        "permute": 5544,
    }
    spec = {
        "method": "train.projunn",
        "network": {"family": "rnn", "hidden": options.hidden, "activation": "modrelu"},
        "data": data,
        "batch_size": 128,
        "epochs": options.epochs,
        "optimizer": {"name": "rmsprop", "learning_rate": options.learning_rate},
        "learning_rate_divider": options.divider,
        "schedule": {"kind": "cosine"},
        "log_every": 100,
    }
    made = []
    for run in options.runs:
        letter, rank = run[0], int(run[1:])
        variant = {"T": "tangent", "D": "direct"}[letter]
        paper = PAPER.get(options.hidden, {}).get(letter, {}).get(rank)
        chosen = spec | {"variant": variant, "rank": rank}
        made.append(Cell(f"projUNN-{letter}, k={rank}", chosen, paper))
    return made


def main() -> None:
    """Run the batch."""
    arguments = parser(__doc__)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--side", type=int, default=14, choices=(7, 14, 28))
    arguments.add_argument("--hidden", type=int, default=116)
    arguments.add_argument("--epochs", type=int, default=10)
    arguments.add_argument("--learning-rate", type=float, default=1e-3)
    arguments.add_argument("--divider", type=float, default=1)
    arguments.add_argument("--runs", nargs="+", default=["T1", "D1", "T16"], help="variant and k")
    options = arguments.parse_args()
    notes = (
        f"{options.side**2} steps of one pixel, {options.epochs} epochs. The paper: 784 steps, 200 "
        "epochs."
    )
    with connected(options) as client:
        name = f"permuted_mnist_{options.side}"
        title = f"Permuted MNIST, {options.side} x {options.side}, hidden {options.hidden}"
        figure = Figure(more=("best_test_accuracy", "epochs"))
        reproduce(
            client, name, title, cells(client, options), figure, seeds=options.seeds, notes=notes
        )


if __name__ == "__main__":
    main()
