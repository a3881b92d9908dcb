"""From the data of a spec to a dataset, with every check done before training starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.specs.data import (
    AddingProblem,
    AnyData,
    ArrayData,
    CopyingMemory,
    LabelledData,
    ParquetData,
    TextData,
)
from stiefel.training.data.arrays import read_arrays
from stiefel.training.data.dataset import Dataset, generator
from stiefel.training.data.labelled import LabelledDataset, Split
from stiefel.training.data.parquet import read_parquet
from stiefel.training.data.rows import Rows
from stiefel.training.data.synthetic import AddingProblemData, CopyingMemoryData
from stiefel.training.data.text import TextDataset

MAX_CLASSES = 100_000


def open_data(spec: AnyData, folder: Path, *, seed: int) -> Dataset:
    """Read and check the data that ``spec`` names.

    Args:
        spec: what to read or make.
        folder: holds the staged files ``train`` and, if the spec names one, ``test``.
        seed: decides order, held-out share, augmentation and made examples.

    Raises:
        InvalidInputError: the data cannot be used; names the file, column and row.
    """
    if isinstance(spec, CopyingMemory):
        return CopyingMemoryData(spec, seed=seed)
    if isinstance(spec, AddingProblem):
        return AddingProblemData(spec, seed=seed)
    test = folder / "test" if spec.test else None
    if isinstance(spec, TextData):
        return TextDataset(spec, folder / "train", test, seed=seed)
    train_rows, train_labels = _read(spec, folder / "train", "train")
    if test:
        test_rows, test_labels = _read(spec, test, "test")
        train = Split(train_rows, train_labels, np.arange(train_rows.count))
        held_out = Split(test_rows, test_labels, np.arange(test_rows.count))
        return LabelledDataset(spec, train, held_out, seed=seed)
    return LabelledDataset(spec, *_divide(spec, train_rows, train_labels, seed), seed=seed)


def _read(spec: ParquetData | ArrayData, path: Path, role: str) -> tuple[Rows, Tensor]:
    if isinstance(spec, ParquetData):
        blocks, labels, tokens = read_parquet(path, spec, role=role)
    else:
        blocks, labels, tokens = read_arrays(path, spec, role=role)
    if not len(labels):
        raise InvalidInputError(
            f"{role} data: no rows", code="bad_data", fix="upload examples", field=f"/data/{role}"
        )
    return Rows(blocks, tokens=tokens), _labels(spec, labels, role)


def _labels(spec: LabelledData, labels: NDArray[np.generic], role: str) -> Tensor:
    numeric = labels.ndim == 1 and labels.dtype.kind in "uifb"
    if spec.task == "regression" and numeric:
        return torch.from_numpy(labels.astype(np.float32))
    whole = numeric and bool(np.all(labels == labels.astype(np.int64)))
    inside = (
        (labels.astype(np.int64) >= 0) & (labels.astype(np.int64) < MAX_CLASSES) if whole else None
    )
    if inside is None or not inside.all():
        row = int(np.argmin(inside)) if inside is not None else 0
        raise InvalidInputError(
            f'{role} data, column "{spec.label}", row {row}: {labels[row]!r} is not a class; '
            f"classes are whole numbers from 0 to {MAX_CLASSES - 1}",
            code="label_out_of_range",
            fix='number the classes from 0, or set task to "regression"',
            field="/data/label",
        )
    return torch.from_numpy(labels.astype(np.int64))


def _divide(spec: LabelledData, rows: Rows, labels: Tensor, seed: int) -> tuple[Split, Split]:
    held_out = int(rows.count * spec.held_out)
    if not held_out or held_out == rows.count:
        raise InvalidInputError(
            f"train data: {rows.count} rows are too few to hold out {spec.held_out:.0%}",
            code="bad_data",
            fix="upload more rows, or a test file",
            field="/data/held_out",
        )
    order = torch.randperm(rows.count, generator=generator(seed, 2**42)).numpy()
    train, test = np.sort(order[held_out:]), np.sort(order[:held_out])
    return Split(rows, labels, train), Split(rows, labels, test)
