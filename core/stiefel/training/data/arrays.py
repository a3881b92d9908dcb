"""Examples in `.npz` or `.safetensors` arrays, first axis first, read in blocks of rows."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from stiefel.errors import InvalidInputError
from stiefel.specs.array_headers import NUMBERS
from stiefel.specs.data import ArrayData
from stiefel.specs.header import read_table
from stiefel.training.data.rows import BLOCK_BYTES, Examples

_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)


@dataclass(frozen=True)
class _Array:
    """One array in a file: ``open`` gives a stream that stands at its first number."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[], IO[bytes]]
    by_columns: bool = False  # Fortran order: rows lie scattered, so it is read at once

    def rows(self, count: int) -> Iterator[NDArray[np.generic]]:
        """Blocks of ``count`` rows, and the rest."""
        if self.by_columns:
            with self.open() as file:
                data = file.read()
            if len(data) != prod(self.shape) * self.dtype.itemsize:
                raise EOFError(f"array {self.name} has another size than its header says")
            whole = np.frombuffer(data, self.dtype).reshape(self.shape, order="F")
            yield from (whole[i : i + count] for i in range(0, self.shape[0], count))
            return
        size = prod(self.shape[1:]) * self.dtype.itemsize
        with self.open() as file:
            for start in range(0, self.shape[0], count):
                here = min(count, self.shape[0] - start)
                data = file.read(here * size)
                if len(data) != here * size:
                    raise EOFError(f"array {self.name} ends early")
                yield np.frombuffer(data, self.dtype).reshape(here, *self.shape[1:])


def read_arrays(path: Path, spec: ArrayData, *, role: str) -> Examples:
    """Return blocks of examples and all labels.

    Raises:
        InvalidInputError: unreadable file, missing array, object arrays, sizes that differ, or
            (as the blocks are read) numbers that are not finite.
    """
    names = spec.input if isinstance(spec.input, list) else [spec.input]
    try:
        arrays = _open(path, [*names, spec.label], role)
        label = arrays[spec.label]
        for name in names:
            if arrays[name].shape[0] != label.shape[0]:
                count = arrays[name].shape[0]
                raise _bad(role, f'array "{name}" has {count} rows, labels have {label.shape[0]}')
        labels = next(label.rows(max(1, label.shape[0])), np.zeros(0))
    except _UNREADABLE as error:
        raise _damaged(role) from error
    if label.dtype.kind == "f":
        _refuse_broken(label.name, labels, 0, role)
    return Examples(_blocks([arrays[name] for name in names], role), labels)


def _open(path: Path, names: list[str], role: str) -> dict[str, _Array]:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    present = _npz(path) if is_zip else _safetensors(path, role)
    for name in names:
        if name not in present:
            raise _bad(role, f'no array "{name}"; the file has {", ".join(sorted(present))}')
    return {name: _numeric(name, present[name], role) for name in names}


def _numeric(name: str, found: Callable[[], _Array], role: str) -> _Array:
    try:
        array = found()
    except ValueError as error:
        raise _bad(role, f'array "{name}" has a header that cannot be read') from error
    if array.dtype.hasobject:
        raise _bad(role, f'array "{name}" holds Python objects')
    if not array.shape or array.dtype.kind not in "uifb":
        raise _bad(role, f'array "{name}" must be numeric with examples along its first axis')
    if not prod(array.shape[1:]):
        raise _bad(role, f'array "{name}" of shape {list(array.shape)} holds no numbers')
    return array


def _npz(path: Path) -> dict[str, Callable[[], _Array]]:
    archive = zipfile.ZipFile(path)

    def find(member: str) -> _Array:
        def begin() -> IO[bytes]:
            file = archive.open(member)
            _npy_header(file)
            return file

        with archive.open(member) as file:
            shape, by_columns, dtype = _npy_header(file)
        return _Array(member.removesuffix(".npy"), shape, dtype, begin, by_columns)

    members = archive.namelist()
    return {name.removesuffix(".npy"): lambda name=name: find(name) for name in members}  # type: ignore[misc]


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    first = version == (1, 0)
    read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    return tuple(int(side) for side in shape), by_columns and len(shape) > 1, dtype


def _safetensors(path: Path, role: str) -> dict[str, Callable[[], _Array]]:
    def read(start: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    try:
        table = read_table(read, path.stat().st_size)
    except InvalidInputError as error:
        raise _bad(role, "the file is neither .npz nor .safetensors") from error

    def find(name: str) -> _Array:
        info = table.tensors[name]

        def begin() -> IO[bytes]:
            file = path.open("rb")
            file.seek(info.begin)
            return file

        kind, size = NUMBERS.get(info.dtype, ("V", 1))
        return _Array(name, tuple(info.shape), np.dtype(f"<{kind}{size}"), begin)

    return {name: lambda name=name: find(name) for name in table.tensors}  # type: ignore[misc]


def _blocks(inputs: list[_Array], role: str) -> Iterator[NDArray[np.generic]]:
    width = sum(prod(array.shape[1:]) * max(4, array.dtype.itemsize) for array in inputs)
    count, first = max(1, BLOCK_BYTES // max(1, width)), 0
    try:
        for parts in zip(*(array.rows(count) for array in inputs), strict=True):
            for array, part in zip(inputs, parts, strict=True):
                _refuse_broken(array.name, part, first, role)
            yield _joined(parts)
            first += len(parts[0])
    except _UNREADABLE as error:
        raise _damaged(role) from error


def _joined(parts: tuple[NDArray[np.generic], ...]) -> NDArray[np.generic]:
    if len(parts) > 1:
        flat = [part.reshape(len(part), -1) for part in parts]
        return np.concatenate(flat, axis=1).astype(np.float32)
    # Grey images lack the channel, and single numbers the axis along which they would be several.
    block = parts[0][:, None] if parts[0].ndim in {1, 3} else parts[0]
    return block if block.dtype == np.uint8 else block.astype(np.float32)


def _refuse_broken(name: str, block: NDArray[np.generic], first: int, role: str) -> None:
    if block.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        finite = np.isfinite(block.astype(np.float32, copy=False))
    if not finite.all():
        row = first + int(np.argmin(finite.reshape(len(block), -1).all(axis=1)))
        raise _bad(role, f'array "{name}", row {row}: not a finite number in float32')


def _damaged(role: str) -> InvalidInputError:
    return _bad(role, "the file is damaged: it does not hold what its header says")


def _bad(role: str, detail: str) -> InvalidInputError:
    return InvalidInputError(
        f"{role} data: {detail}",
        code="bad_data",
        fix="upload numeric arrays of equal length, saved by numpy.savez or safetensors",
        field=f"/data/{role}",
    )
