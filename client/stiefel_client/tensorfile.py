"""Safetensors files read with numpy alone, block by block.

Independent of the service's own reader on purpose: what checks a result must not share
the code that made it. Blocks are read with ``pread``; nothing is mapped, nothing is whole
in memory but the header.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stiefel_client.errors import UnreadableFileError

MAX_HEADER_BYTES = 16 * 2**20
MAX_TENSORS = 200_000
MAX_RANK = 8

Array = NDArray[Any]

# Bits per element, from the format's own table of dtypes.
_BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
_NUMPY = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8", "BF16": "<u2"}
# Unit roundoff times two of each stored dtype: the spacing at 1.
EPS = {"F16": 2.0**-10, "BF16": 2.0**-7, "F32": 2.0**-23, "C64": 2.0**-23, "F64": 2.0**-52}


@dataclass(frozen=True)
class TensorEntry:
    """One row of the header: where a tensor's bytes lie and how to read them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int  # absolute offset in the file
    end: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(rows, columns) of its matrix: a kernel (out, in, ...) is flattened behind ``out``."""
        return self.shape[0], math.prod(self.shape[1:])


class TensorFile:
    """An open safetensors file, read-only.

    Attributes:
        size: bytes of the whole file.
        header: the 8 length bytes and the header, as they lie in the file.
        tensors: entries by name, in the order of their offsets.
        metadata: the header's ``__metadata__``.

    Raises:
        UnreadableFileError: missing file, no safetensors, or beyond the limits of 16 MiB of
            header, 200,000 tensors and rank 8; names what is wrong and where.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise UnreadableFileError(f"{path}: {error.strerror}") from error
        try:
            self.size = os.fstat(self._fd).st_size
            self.header = self._read_header()
            self.tensors, self.metadata = _parse(path, self.header, self.size)
        except BaseException:
            os.close(self._fd)
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
        """Close the file."""
        os.close(self._fd)

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end) of the file.

        Raises:
            UnreadableFileError: the file ended before ``end``.
        """
        parts = []
        while start < end:
            part = os.pread(self._fd, min(end - start, 2**30), start)
            if not part:
                raise UnreadableFileError(f"{self.path}: the file ends at byte {start}")
            parts.append(part)
            start += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def chunks(self, entry: TensorEntry, block: int = 8 * 2**20) -> Iterator[bytes]:
        """The tensor's bytes, ``block`` at a time."""
        for start in range(entry.start, entry.end, block):
            yield self.read(start, min(start + block, entry.end))

    def rows(self, entry: TensorEntry, first: int, last: int) -> Array:
        """Rows [first, last) of the tensor's matrix as float64 or complex128."""
        width = entry.matrix_shape[1] * item_bytes(entry)
        data = self.read(entry.start + first * width, entry.start + last * width)
        return decode(data, entry.dtype).reshape(last - first, -1)

    def columns(self, entry: TensorEntry, first: int, last: int) -> Array:
        """Columns [first, last) of the tensor's matrix as float64 or complex128."""
        item = item_bytes(entry)
        height, width = entry.matrix_shape
        if (first, last) == (0, width):
            return self.rows(entry, 0, height)
        starts = range(entry.start + first * item, entry.end, width * item)
        data = b"".join(self.read(at, at + (last - first) * item) for at in starts)
        return decode(data, entry.dtype).reshape(height, last - first)

    def _read_header(self) -> bytes:
        if self.size < 8:
            raise UnreadableFileError(f"{self.path}: {self.size} bytes are no safetensors file")
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        if length > MAX_HEADER_BYTES:
            raise UnreadableFileError(
                f"{self.path}: claims a header of {length} bytes; the limit is {MAX_HEADER_BYTES}"
            )
        return self.read(0, 8 + length)


def item_bytes(entry: TensorEntry) -> int:
    """Bytes of one number of a tensor that can be decoded."""
    return _BITS[entry.dtype] // 8


def decodable(entry: TensorEntry) -> bool:
    """Whether the tensor holds real or complex floating-point numbers of 16 bits or more."""
    return entry.dtype in _NUMPY


def decode(data: bytes, dtype: str) -> Array:
    """Little-endian bytes of one dtype as a flat float64 or complex128 array."""
    raw = np.frombuffer(data, dtype=_NUMPY[dtype])
    if dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.astype(np.complex128 if dtype == "C64" else np.float64)


def _parse(path: Path, header: bytes, size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    def refuse(what: str) -> UnreadableFileError:
        return UnreadableFileError(f"{path}: {what}")

    try:
        table = json.loads(header[8:].decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise refuse(f"the header is not JSON ({error})") from error
    if not isinstance(table, dict):
        raise refuse("the header is not a JSON object")
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise refuse("__metadata__ is not a JSON object")
    if len(table) > MAX_TENSORS:
        raise refuse(f"{len(table)} tensors; the limit is {MAX_TENSORS}")
    try:
        entries = [_entry(name, row, len(header)) for name, row in table.items()]
    except (KeyError, TypeError, ValueError) as error:
        raise refuse(f"a header entry is malformed ({error})") from error
    entries.sort(key=lambda entry: (entry.start, entry.end))
    _require_covering(path, entries, len(header), size)
    return {entry.name: entry for entry in entries}, metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _entry(name: str, row: Any, base: int) -> TensorEntry:
    shape = tuple(row["shape"])
    start, end = row["data_offsets"]
    numbers = (*shape, start, end)
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in numbers):
        raise ValueError(f"{name}: shape and offsets must be whole and not negative")
    if len(shape) > MAX_RANK:
        raise ValueError(f"{name}: rank {len(shape)}; the limit is {MAX_RANK}")
    bits = _BITS[row["dtype"]] * math.prod(shape)
    if bits % 8 or bits // 8 != end - start:
        raise ValueError(f"{name}: {end - start} bytes do not fit {row['dtype']} {list(shape)}")
    return TensorEntry(name, row["dtype"], shape, base + start, base + end)


def _require_covering(path: Path, entries: list[TensorEntry], base: int, size: int) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    at = base
    for entry in entries:
        if entry.start != at:
            raise UnreadableFileError(
                f"{path}: {entry.name} starts at {entry.start}, expected {at}"
            )
        at = entry.end
    if at != size:
        raise UnreadableFileError(
            f"{path}: the header accounts for {at} bytes, the file has {size}"
        )
