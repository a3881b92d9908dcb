"""The memory that a plan expects of a training, beside the peak that was measured.

    python benchmarks/training_memory.py [--only vgg16 ...] [--append] [--out training_memory]

Each case trains a few steps in a fresh process on one thread; the peak is the kernel's high-water
mark of resident memory. The estimate is the one that the run announces before it trains, which is
the plan's where the plan can tell. Admission needs an estimate that is not too small: with a ratio
below 1 it would admit a job that dies; above 2 it would refuse jobs that fit.
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
from stage import PYTHON, command_line, publish
from trainings import earlier

WIDE = {"family": "mlp", "hidden": [4096] * 3}
MIDDLE = {"family": "mlp", "hidden": [2048] * 3}
COPYING = {"kind": "copying_memory", "delay": 200, "batches_per_epoch": 3}
IMAGE, GREY = (3, 32, 32), (1, 28, 28)


def library(task: str, **config: Any) -> dict[str, Any]:
    """A network of `transformers`."""
    return {"network": {"family": "transformers", "task": task, "config": config}}


BLOCKS = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
WIDTHS = BLOCKS | {"intermediate_size": 1024}
GPT2 = {"model_type": "gpt2", "n_embd": 256, "n_layer": 4, "n_head": 4}
VIT = {"model_type": "vit", "patch_size": 8, **WIDTHS}
IMAGES, TEXTS, NUMBERS, PLAIN = "images", "texts", "numbers", "plain text"

#: name: (shape of an example or kind of file, number of examples, fields of the spec)
CASES: dict[str, tuple[tuple[int, ...] | str, int, dict[str, Any]]] = {
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
    "parquet, images": (IMAGES, 200, {"network": {"family": "resnet20"}, "batch_size": 8}),
    "parquet, images, mlp": (IMAGES, 400, {"network": {"family": "mlp", "hidden": [64]}}),
    "parquet, numbers": (NUMBERS, 4000, {"network": MIDDLE, "max_steps": 4}),
    "parquet, numbers, dlrt": (
        NUMBERS,
        4000,
        {"method": "train.dlrt", "network": MIDDLE, "max_steps": 6},
    ),
    "transformers vit": (IMAGES, 200, library("image_classification", **VIT) | {"batch_size": 8}),
    "transformers vit, projunn": (
        (3, 64, 64),
        200,
        library("image_classification", **VIT) | {"method": "train.projunn"},
    ),
    "transformers resnet": (
        (3, 64, 64),
        200,
        library("image_classification", model_type="resnet") | {"batch_size": 32},
    ),
    "transformers bert": (
        TEXTS,
        400,
        library("sequence_classification", model_type="bert", **WIDTHS) | {"batch_size": 32},
    ),
    "transformers bert-base, batch 4": (
        TEXTS,
        400,
        library("sequence_classification", model_type="bert") | {"batch_size": 4},
    ),
    "transformers gpt2": (
        PLAIN,
        200,
        library("causal_language_model", **GPT2) | {"batch_size": 16},
    ),
    "transformers gpt2, dlrt": (
        PLAIN,
        200,
        library("causal_language_model", **GPT2)
        | {"batch_size": 16, "method": "train.dlrt", "max_steps": 6},
    ),
    "transformers llama": (
        PLAIN,
        200,
        library("causal_language_model", model_type="llama", **WIDTHS) | {"batch_size": 16},
    ),
    "transformers llama, oialr": (
        PLAIN,
        200,
        library("causal_language_model", model_type="llama", **WIDTHS)
        | {"batch_size": 16, "method": "train.oialr", "max_steps": 4, "delay": 1, "period": 2},
    ),
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
    ratios = [row["estimate/peak"] for row in rows]
    least, largest = min(ratios), max(ratios)
    title = "Expected and measured memory of trainings"
    publish(options.out, title, command_line(), rows, least=least, largest=largest)
    return int(least < 1.0 or largest > 2.0)


def _one(name: str) -> None:
    import torch

    from stiefel.methods import METHODS
    from stiefel.methods.local import FolderRun
    from stiefel.specs import parse_spec

    torch.set_num_threads(1)
    kind, _, fields = CASES[name]
    base = {"method": "train.dense", "max_steps": 3, "epochs": 1, "device": "cpu"}
    spec = parse_spec(base | {"data": _data(kind)} | fields)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in"
        source.mkdir()
        if kind:  # written by another process, whose memory does not count here
            command = [PYTHON, "-c", f"import training_memory as t; t.write({name!r}, {folder!r})"]
            subprocess.run(command, check=True, cwd=Path(__file__).parent)
        run = FolderRun(source, Path(folder) / "state")
        METHODS[spec.method].run(spec, run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    row = {
        "case": name,
        "method": spec.method,
        "estimate_mib": round(run.memory_bytes / 2**20),
        "peak_mib": round(peak / 2**20),
        "estimate/peak": round(run.memory_bytes / peak, 2),
    }
    print(json.dumps(row))


def _data(kind: tuple[int, ...] | str) -> dict[str, Any]:
    if not kind:
        return COPYING
    if kind == PLAIN:
        return {"kind": "text", "train": "art_0", "context": 128}
    if isinstance(kind, str):
        return {"kind": "parquet", "train": "art_0", "input": "x", "label": "y", "context": 128}
    return {"kind": "arrays", "train": "art_0", "input": "x", "label": "y"}


def write(name: str, folder: str) -> None:
    """Write the data of a case: arrays, images of 64 x 64 and 224 x 224, texts or numbers."""
    kind, count, fields = CASES[name]
    path = Path(folder) / "in" / "train"
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 10, count)
    if kind == PLAIN:
        path.write_bytes(b"to be or not to be, that is the question. " * 2000)
    elif kind == IMAGES:
        side = 64 if fields["network"]["family"] == "transformers" else 224
        _write_parquet(path, [_image(draw, side) for _ in range(count)], labels)
    elif kind == TEXTS:
        _write_parquet(path, ["a text of some words " * 20] * count, labels)
    elif kind == NUMBERS:
        rows = draw.standard_normal((count, 1024), dtype=np.float32)
        _write_parquet(path, list(rows), labels)
    else:
        assert isinstance(kind, tuple)
        buffer = io.BytesIO()
        np.savez(buffer, x=draw.standard_normal((count, *kind), dtype=np.float32), y=labels)
        path.write_bytes(buffer.getvalue())


def _image(draw: np.random.Generator, side: int) -> dict[str, Any]:
    from PIL import Image

    buffer = io.BytesIO()
    pixels = draw.integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _write_parquet(path: Path, rows: list[Any], labels: Any) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"x": rows, "y": labels}), path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=list(CASES), help="these cases alone")
    parser.add_argument("--append", action="store_true", help="add to the rows of the result")
    parser.add_argument("--out", default="training_memory")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
