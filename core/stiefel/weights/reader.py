"""Read tensors of a safetensors file one at a time, by byte range.

``pread`` and never ``mmap``: mapped pages count as the process's memory, and a file cut
short under a mapping kills the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.specs.header import TensorInfo, TensorTable, read_table
from stiefel.weights.dtypes import TORCH

BLOCK = 4 * 2**20


class TensorReader:
    """One open safetensors file. Use it as a context manager.

    Args:
        path: the file; its header is read and checked at once.

    Raises:
        InvalidInputError: the file is not safetensors, or breaks its format or limits.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.table: TensorTable = read_table(self._range, os.fstat(self._descriptor).st_size)
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; reading afterwards is an error."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def header(self) -> bytes:
        """The length prefix and the header, as they stand in the file."""
        return self._range(0, self.table.header_bytes)

    def tensor(self, info: TensorInfo) -> Tensor:
        """Return one tensor of a convertible dtype, in memory of its own."""
        buffer = torch.empty(info.nbytes, dtype=torch.uint8)
        self._fill(buffer.numpy().data, info.begin)
        return buffer.view(TORCH[info.dtype]).reshape(info.shape)

    def blocks(self, info: TensorInfo) -> Iterator[memoryview]:
        """Yield the tensor's bytes in blocks; each block is valid until the next is taken."""
        buffer = memoryview(bytearray(min(BLOCK, info.nbytes)))
        for begin in range(info.begin, info.end, BLOCK):
            block = buffer[: min(BLOCK, info.end - begin)]
            self._fill(block, begin)
            yield block

    def _range(self, offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        self._fill(memoryview(buffer), offset)
        return bytes(buffer)

    def _fill(self, view: memoryview, offset: int) -> None:
        while len(view):
            count = os.preadv(self._descriptor, [view[: 2**30]], offset)
            if count == 0:
                raise InvalidInputError(
                    f"{self.path.name} ended while it was read",
                    code="file_truncated",
                    fix="Upload the file again and compare its size and digest.",
                )
            view = view[count:]
            offset += count
