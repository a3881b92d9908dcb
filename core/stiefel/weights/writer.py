"""Write a safetensors file whose header is known only at the end.

The tensors' bytes go to a body file that only grows; the header becomes a second file.
Their concatenation is the safetensors file. Tensors must come with element sizes that do
not increase, so that each begins at a multiple of its element's size.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from stiefel.errors import StiefelError


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor of a body: where it lies (offsets within the body) and its digest."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form, as the ledger keeps it."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "begin": self.begin,
            "end": self.end,
            "sha256": self.sha256,
        }


class BodyWriter:
    """Appends tensors to one body file, hashing as it writes.

    Args:
        path: the body; created where it does not exist.
        size: bytes that are known to be complete. What a dead attempt wrote beyond them is cut.

    Raises:
        StiefelError: the body is shorter than ``size`` (``state_damaged``).
    """

    def __init__(self, path: Path, size: int) -> None:
        self._file = path.open("ab")
        present = self._file.tell()
        if present < size:
            self._file.close()
            raise StiefelError(
                f"{path.name} holds {present:,} bytes where the ledger records {size:,}",
                code="state_damaged",
                fix="Retry the job from the start.",
            )
        if present > size:
            self._file.truncate(size)
        self.size = size

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def copy(
        self, name: str, dtype: str, shape: tuple[int, ...], blocks: Iterable[memoryview]
    ) -> Written:
        """Append the bytes of ``blocks`` as one tensor."""
        digest = hashlib.sha256()
        begin = self.size
        for block in blocks:
            digest.update(block)
            self._file.write(block)
            self.size += len(block)
        self._file.flush()
        return Written(name, dtype, shape, begin, self.size, digest.hexdigest())

    def tensor(self, name: str, dtype: str, x: Tensor) -> Written:
        """Append ``x`` (contiguous bytes of its dtype) as one tensor."""
        flat = x.detach().contiguous().reshape(-1).view(torch.uint8)
        return self.copy(name, dtype, tuple(x.shape), [flat.numpy().data])


def header_bytes(tensors: Iterable[Mapping[str, Any]], metadata: Mapping[str, str]) -> bytes:
    """Return the length prefix and header of a file whose body holds ``tensors``.

    Args:
        tensors: entries as of ``Written.to_dict``, in any order.
        metadata: becomes ``__metadata__`` where it is not empty.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for entry in tensors:
        header[entry["name"]] = {
            "dtype": entry["dtype"],
            "shape": entry["shape"],
            "data_offsets": [entry["begin"], entry["end"]],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_new(path: Path, content: bytes) -> None:
    """Write a whole file that did not exist at the last checkpoint, replacing a dead attempt's."""
    path.unlink(missing_ok=True)
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
