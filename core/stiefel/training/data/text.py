"""Plain text for language modelling, read in windows straight from the file."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.models.signature import Signature
from stiefel.specs.data import TextData
from stiefel.training.data.dataset import Batch, generator
from stiefel.training.data.parquet import is_text, open_parquet, read_texts

CHECKED = 1 << 20  # bytes decoded to see that the file is text


class TextDataset:
    """Windows of ``context`` bytes; the target of a position is the byte that follows it."""

    def __init__(self, spec: TextData, train: Path, test: Path | None, *, seed: int) -> None:
        self._seed = seed
        self._context = spec.context
        if spec.column:
            with TemporaryDirectory(prefix="text-") as folder:  # open files outlive their names
                train = _unpacked(train, spec.column, "train", Path(folder))
                test = _unpacked(test, spec.column, "test", Path(folder)) if test else None
                self._open(spec, train, test)
        else:
            self._open(spec, train, test)
        self.signature = Signature("tokens", (spec.context,), 256, per_step=True, vocabulary=256)

    def _open(self, spec: TextData, train: Path, test: Path | None) -> None:
        _check(train, "train")
        size = train.stat().st_size
        held_out = 0 if test else int(size * spec.held_out)
        self._train = _Windows(train, 0, size - held_out, spec.context, "train")
        if test:
            _check(test, "test")
            self._test = _Windows(test, 0, test.stat().st_size, spec.context, "test")
        else:
            self._test = _Windows(train, size - held_out, size, spec.context, "test")

    def batches_per_epoch(self, batch_size: int) -> int:
        """Full batches of windows that do not overlap."""
        return max(1, self._train.count // batch_size)

    def train(self, *, epoch: int, first: int, batch_size: int) -> Iterator[Batch]:
        """Windows shuffled by (seed, epoch), all shifted by one offset per epoch."""
        source = generator(self._seed, epoch)
        order = torch.randperm(self._train.count, generator=source).tolist()
        offset = int(torch.randint(0, self._context, (1,), generator=source))
        for index in range(first, self.batches_per_epoch(batch_size)):
            yield self._train.batch(order[index * batch_size : (index + 1) * batch_size], offset)

    def test(self, *, batch_size: int) -> Iterator[Batch]:
        """Windows in order."""
        for start in range(0, self._test.count, batch_size):
            yield self._test.batch(range(start, min(start + batch_size, self._test.count)), 0)


class _Windows:
    """Windows of ``context + 1`` bytes at multiples of ``context`` in [start, stop)."""

    def __init__(self, path: Path, start: int, stop: int, context: int, role: str) -> None:
        self._fd = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._fd)
        self._start, self._stop, self._context = start, stop, context
        self.count = (stop - start - 1) // context
        if self.count < 1:
            raise _bad(role, f"{stop - start} bytes hold no window of {context + 1}")

    def batch(self, windows: range | list[int], offset: int) -> Batch:
        both = torch.stack([self._read(window, offset) for window in windows])
        return Batch(both[:, :-1], both[:, 1:])

    def _read(self, window: int, offset: int) -> Tensor:
        length = self._context + 1
        at = min(self._start + window * self._context + offset, self._stop - length)
        data = np.frombuffer(os.pread(self._fd, length, at), dtype=np.uint8)
        return torch.from_numpy(data.astype(np.int64))


def _unpacked(path: Path, column: str, role: str, folder: Path) -> Path:
    """The texts of a parquet column, a line each, in a file of ``folder``."""
    file = open_parquet(path, [column], role)
    kind = file.schema_arrow.field(column).type
    if not is_text(kind):
        raise _bad(role, f'column "{column}" holds {kind}, not text')
    plain = folder / role
    with plain.open("wb") as out:
        for text in read_texts(file, column, role):
            out.write(text + b"\n")
    return plain


def _check(path: Path, role: str) -> None:
    with path.open("rb") as file:
        head = file.read(CHECKED)
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut at the edge is not an error
            raise _bad(role, f"byte {error.start} is not UTF-8 text") from error


def _bad(role: str, detail: str) -> InvalidInputError:
    return InvalidInputError(
        f"{role} data: {detail}",
        code="bad_data",
        fix="upload UTF-8 text longer than the context",
        field=f"/data/{role}",
    )
