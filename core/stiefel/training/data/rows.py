"""Examples in a flat temporary file: random access to data that does not fit in memory.

Uploaded data is decoded once, row after row, into one file of equal records; a batch is a handful
of ``pread`` calls, and the page cache keeps what fits. Nothing is mapped, so that the memory of
the process is the memory of a batch.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Examples are decoded, copied and measured so many bytes at a time, one example at the least.
BLOCK_BYTES = 2**23


class Examples(NamedTuple):
    """What a file holds, as it is read: blocks of examples, and all labels."""

    blocks: Iterator[NDArray[np.generic]]
    labels: NDArray[np.generic]
    tokens: bool = False  # ids of tokens, not numbers to compute with


class Rows:
    """``count`` records of one shape and dtype in a file.

    Args:
        records: arrays of shape (k, *shape), all of one shape and dtype.
        tokens: whether they are ids.
    """

    def __init__(self, records: Iterable[NDArray[np.generic]], *, tokens: bool = False) -> None:
        self.tokens = tokens
        self._fd, path = tempfile.mkstemp(prefix="rows-")
        Path(path).unlink()  # the open descriptor is all that keeps the bytes
        weakref.finalize(self, os.close, self._fd)
        self.count = 0
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype[np.generic] = np.dtype(np.uint8)
        for block in records:
            self.shape, self.dtype = block.shape[1:], block.dtype
            self._write(np.ascontiguousarray(block).data.cast("B"))
            self.count += len(block)
        self._size = int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def _write(self, data: memoryview) -> None:
        while data:
            data = data[os.write(self._fd, data) :]

    def blocks(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Records ``indices`` in blocks that memory holds easily even in double precision."""
        numbers = max(1, self._size // self.dtype.itemsize)
        count = max(1, BLOCK_BYTES // (8 * numbers))
        for start in range(0, len(indices), count):
            yield self.take(indices[start : start + count])

    def take(self, indices: Sequence[int]) -> Tensor:
        """Records ``indices`` as one tensor (len(indices), *shape) of the stored dtype."""
        buffer = bytearray(self._size * len(indices))
        view = memoryview(buffer)
        for slot, index in enumerate(indices):
            part = view[slot * self._size : (slot + 1) * self._size]
            os.preadv(self._fd, [part], index * self._size)
        array = np.frombuffer(buffer, dtype=self.dtype).reshape(len(indices), *self.shape)
        return torch.from_numpy(array)
