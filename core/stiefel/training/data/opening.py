"""From the data of a spec to a dataset, with every check done before training starts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.specs.array_headers import MAX_CLASSES, label_shape, unfit_label
from stiefel.specs.data import (
    AddingProblem,
    AnyData,
    ArrayData,
    CopyingMemory,
    LabelledData,
    ParquetData,
    TextData,
)
from stiefel.specs.data_facts import held_out
from stiefel.training.data.arrays import read_arrays
from stiefel.training.data.dataset import Dataset, generator
from stiefel.training.data.labelled import LabelledDataset, Split
from stiefel.training.data.parquet import read_parquet
from stiefel.training.data.rows import Rows
from stiefel.training.data.synthetic import AddingProblemData, CopyingMemoryData
from stiefel.training.data.text import TextDataset


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
        tested = Split(test_rows, test_labels, np.arange(test_rows.count))
        return LabelledDataset(spec, train, tested, seed=seed)
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
    if labels.ndim != 1:
        raise label_shape(role, spec.label, labels.shape)
    if labels.dtype.kind not in "uifb":
        raise unfit_label(role, spec, 0, repr(labels[0]))
    numbers = labels.astype(np.float64)
    good = np.isfinite(numbers.astype(np.float32))
    if spec.task == "classification":
        good = (numbers >= 0) & (numbers < MAX_CLASSES) & (numbers == np.floor(numbers))
    if not good.all():
        row = int(np.argmin(good))
        raise unfit_label(role, spec, row, repr(labels[row].item()))
    return torch.from_numpy(labels.astype(np.float32 if spec.task == "regression" else np.int64))


def _divide(spec: LabelledData, rows: Rows, labels: Tensor, seed: int) -> tuple[Split, Split]:
    held = held_out(spec, rows.count)
    order = torch.randperm(rows.count, generator=generator(seed, 2**42)).numpy()
    train, test = np.sort(order[held:]), np.sort(order[:held])
    return Split(rows, labels, train), Split(rows, labels, test)
