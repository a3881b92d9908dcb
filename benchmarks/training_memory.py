"""The memory that a plan expects of a training, beside the peak that was measured.

    python benchmarks/training_memory.py [--only vgg16 ...] [--append] [--out training_memory]

Each case trains a few steps in a fresh process on one thread; the peak is the kernel's high-water
mark of resident memory. Admission needs an estimate that is seldom too small: with a ratio below 1
it would admit a job that dies.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from stage import PYTHON, publish
from trainings import earlier

WIDE = {"family": "mlp", "hidden": [4096] * 3}
MIDDLE = {"family": "mlp", "hidden": [2048] * 3}
COPYING = {"kind": "copying_memory", "delay": 200, "batches_per_epoch": 3}
IMAGE, GREY = (3, 32, 32), (1, 28, 28)

#: name: (shape of an example, number of examples, fields of the spec)
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "mlp, tiny": ((64,), 512, {"network": {"family": "mlp", "hidden": [16]}}),
    "mlp, adam": ((1024,), 512, {"network": WIDE, "max_steps": 4}),
    "mlp, sgd": ((1024,), 512, {"network": WIDE, "max_steps": 4, "optimizer": {"name": "sgd"}}),
    "mlp, batch 8192": (
        (1024,),
        16_384,
        {"network": {"family": "mlp", "hidden": [1024] * 8}, "batch_size": 8192, "max_steps": 2},
    ),
    "lenet5": (GREY, 4096, {"network": {"family": "lenet5"}, "batch_size": 1024}),
    "vgg16": (IMAGE, 1024, {"network": {"family": "vgg16", "width": 32}}),
    "alexnet": (IMAGE, 1024, {"network": {"family": "alexnet", "hidden": 2048}}),
    "resnet20": (IMAGE, 1024, {"network": {"family": "resnet20"}, "batch_size": 256}),
    "vit": (
        IMAGE,
        512,
        {
            "network": {
                "family": "vit",
                "patch": 4,
                "depth": 4,
                "width": 192,
                "heads": 4,
                "hidden": 768,
            }
        },
    ),
    "rnn, modrelu": ((), 0, {"method": "train.projunn", "network": {"family": "rnn"}}),
    "rnn, complex": (
        (),
        0,
        {"method": "train.projunn", "network": {"family": "rnn", "numbers": "complex"}},
    ),
    "rnn, relu": (
        (),
        0,
        {"method": "train.projunn", "network": {"family": "rnn", "activation": "relu"}},
    ),
    "orthogonal_cnn": (
        IMAGE,
        512,
        {"method": "train.projunn", "network": {"family": "orthogonal_cnn"}},
    ),
    "mlp, projunn": ((1024,), 512, {"method": "train.projunn", "network": MIDDLE}),
    "lenet5, projunn": (
        GREY,
        4096,
        {"method": "train.projunn", "network": {"family": "lenet5"}, "batch_size": 1024},
    ),
    "mlp, dlrt": ((1024,), 512, {"method": "train.dlrt", "network": MIDDLE, "max_steps": 6}),
    "vgg16, dlrt": (
        IMAGE,
        1024,
        {"method": "train.dlrt", "network": {"family": "vgg16", "width": 32}, "max_steps": 6},
    ),
    "mlp, oialr": (
        (1024,),
        512,
        {"method": "train.oialr", "network": MIDDLE, "max_steps": 4, "delay": 1, "period": 2},
    ),
    "0.8 GB of data": ((3, 64, 64), 16_000, {"network": {"family": "mlp", "hidden": [16]}}),
}


def main() -> int:
    options = _options()
    if options.case:
        _one(options.case)
        return 0
    rows = earlier(options.out, options.append)
    for name in options.only or CASES:
        command = [PYTHON, __file__, "--case", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    least = min(row["estimate/peak"] for row in rows)
    title = "Expected and measured memory of trainings"
    command_line = " ".join(["python", *sys.argv])
    publish(options.out, title, command_line, rows, least=least)
    return int(least < 0.9)


def _one(name: str) -> None:
    import torch

    from stiefel.methods.local import run_local
    from stiefel.specs import parse_spec
    from stiefel.specs.data_facts import Source
    from stiefel.specs.training_plan import plan_training

    torch.set_num_threads(1)
    shape, _, fields = CASES[name]
    arrays = {"kind": "arrays", "train": "art_0", "input": "x", "label": "y"}
    base = {"method": "train.dense", "max_steps": 3, "epochs": 1, "device": "cpu"}
    spec = parse_spec(base | {"data": arrays if shape else COPYING} | fields)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        if shape:  # written by another process, whose memory does not count here
            command = [PYTHON, "-c", f"import training_memory as t; t.write({name!r}, {folder!r})"]
            subprocess.run(command, check=True, cwd=Path(__file__).parent)
        path = source / "train"

        def read(start: int, length: int) -> bytes:
            with path.open("rb") as file:
                file.seek(start)
                return file.read(length)

        files = {"train": Source(read, path.stat().st_size)} if shape else {}
        expected = plan_training(spec, files).peak_memory_bytes
        run_local(spec, source, Path(folder) / "out")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {
        "case": name,
        "method": spec.method,
        "estimate_mib": round(expected / 2**20),
        "peak_mib": round(peak / 2**20),
        "estimate/peak": round(expected / peak, 2),
    }
    print(json.dumps(row))


def write(name: str, folder: str) -> None:
    """Write the arrays of a case."""
    shape, count, _ = CASES[name]
    draw = np.random.default_rng(0)
    buffer = io.BytesIO()
    x = draw.standard_normal((count, *shape), dtype=np.float32)
    np.savez(buffer, x=x, y=draw.integers(0, 10, count))
    (Path(folder) / "in" / "train").write_bytes(buffer.getvalue())


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), help="these cases alone")
    parser.add_argument("--append", action="store_true", help="add to the rows of the result")
    parser.add_argument("--out", default="training_memory")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
