"""Shapes and types of arrays in `.npz` and safetensors files, read by byte range.

Of the numbers themselves only short label arrays are read, to count the classes.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from stiefel.errors import InvalidInputError
from stiefel.specs.data import ArrayData, LabelledData
from stiefel.specs.header import read_table

MAX_CLASSES = 100_000
LABEL_BYTES = 2**22  # longer label arrays are left to the worker
_READ = 2**23  # bytes of one file that a plan may ask for
_HEADER = 2**16
_TYPE = re.compile(r"[<>|=]?([uifb])(\d+)")
#: Type of a safetensors tensor -> kind and size, as numpy names them.
NUMBERS = {
    **{f"U{8 * n}": ("u", n) for n in (1, 2, 4, 8)},
    **{f"I{8 * n}": ("i", n) for n in (1, 2, 4, 8)},
    **{f"F{8 * n}": ("f", n) for n in (2, 4, 8)},
    "BOOL": ("b", 1),
}

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class ArrayHeader:
    """Shape and type of one array; ``classes`` of a label array where they could be counted."""

    shape: tuple[int, ...]
    kind: str  # u, i, f or b, as numpy names them
    itemsize: int
    classes: int | None = None
    by_columns: bool = False  # Fortran order: it can only be read whole

    @property
    def nbytes(self) -> int:
        """Bytes of the array in memory."""
        return prod(self.shape) * self.itemsize


def read_headers(read: Read, size: int, spec: ArrayData, *, role: str) -> dict[str, ArrayHeader]:
    """Return the arrays that ``spec`` names.

    Raises:
        InvalidInputError: the file is neither kind, an array is missing, not numeric or without
            rows, or a label is no class.
    """
    names = [*(spec.input if isinstance(spec.input, list) else [spec.input]), spec.label]
    if read(0, min(size, 4)) == b"PK\x03\x04":
        found = _npz(_Ranges(read, size), names, spec, role)
    else:
        found = _safetensors(read, size, names, spec, role)
    if len(found[spec.label].shape) != 1:
        raise label_shape(role, spec.label, found[spec.label].shape)
    return found


def _safetensors(
    read: Read, size: int, names: list[str], spec: ArrayData, role: str
) -> dict[str, ArrayHeader]:
    try:
        table = read_table(read, size)
    except InvalidInputError as error:
        raise _bad(role, "the file is neither .npz nor .safetensors") from error
    found = {}
    for name in names:
        if name not in table.tensors:
            raise _missing(role, name, sorted(table.tensors))
        info = table.tensors[name]
        kind, itemsize = NUMBERS.get(info.dtype, ("", 0))
        header = _checked(role, name, tuple(info.shape), kind, itemsize)
        if _is_label(spec, name, header):
            header = _counted(role, spec, header, read(info.begin, info.end - info.begin), "<")
        found[name] = header
    return found


def _npz(file: _Ranges, names: list[str], spec: ArrayData, role: str) -> dict[str, ArrayHeader]:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            found = {}
            for name in names:
                if name not in members:
                    raise _missing(role, name, sorted(members))
                with archive.open(members[name]) as member:
                    found[name] = _npy(member, name, spec, role)
            return found
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise _bad(role, "the .npz archive is damaged") from error


def _npy(member: Any, name: str, spec: ArrayData, role: str) -> ArrayHeader:
    magic = member.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise _bad(role, f'array "{name}" is not in the format of numpy')
    width = 2 if magic[6] == 1 else 4
    length = int.from_bytes(member.read(width), "little")
    try:
        facts = ast.literal_eval(member.read(min(length, _HEADER)).decode("latin1").strip())
        shape, described = tuple(int(side) for side in facts["shape"]), str(facts["descr"])
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise _bad(role, f'array "{name}" has a header that cannot be read') from error
    if "O" in described:
        raise _bad(role, f'array "{name}" holds Python objects')
    match = _TYPE.fullmatch(described)
    kind, itemsize = (match[1], int(match[2])) if match else ("", 0)
    header = _checked(role, name, shape, kind, itemsize)
    if facts.get("fortran_order") is True and len(shape) > 1:
        return replace(header, by_columns=True)
    if _is_label(spec, name, header):
        order = ">" if described.startswith(">") else "<"
        header = _counted(role, spec, header, member.read(header.nbytes), order)
    return header


def _checked(role: str, name: str, shape: tuple[int, ...], kind: str, itemsize: int) -> ArrayHeader:
    if not shape or not kind:
        raise _bad(role, f'array "{name}" must be numeric with examples along its first axis')
    if shape[0] == 0:
        raise _bad(role, "no rows")
    if not prod(shape):
        raise _bad(role, f'array "{name}" of shape {list(shape)} holds no numbers')
    return ArrayHeader(shape, kind, itemsize)


def _is_label(spec: ArrayData, name: str, header: ArrayHeader) -> bool:
    """Whether these are labels whose classes can be counted here."""
    if spec.task != "classification" or name != spec.label:
        return False
    return len(header.shape) == 1 and header.nbytes <= LABEL_BYTES


def _counted(
    role: str, spec: ArrayData, header: ArrayHeader, data: bytes, order: str
) -> ArrayHeader:
    """``header`` with the number of classes: the largest label and one."""
    import numpy as np

    if len(data) != header.nbytes:
        return header  # the worker says what is wrong
    values = np.frombuffer(data, np.dtype(f"{order}{header.kind}{header.itemsize}"))
    outside = ~((values >= 0) & (values < MAX_CLASSES)) | (values != np.floor(values))
    if outside.any():
        row = int(np.argmax(outside))
        raise unfit_label(role, spec, row, repr(values[row].item()))
    return replace(header, classes=int(values.max()) + 1)


def unfit_label(role: str, spec: LabelledData, row: int, value: str) -> InvalidInputError:
    """The refusal of a label that is no class, or no number to come near to."""
    where = f'{role} data, column "{spec.label}", row {row}: {value}'
    if spec.task == "regression":
        detail, fix = f"{where} is not a finite number", "mend or remove the row"
    else:
        detail = f"{where} is not a class; classes are whole numbers from 0 to {MAX_CLASSES - 1}"
        fix = 'number the classes from 0, or set task to "regression"'
    return InvalidInputError(detail, code="label_out_of_range", fix=fix, field="/data/label")


def label_shape(role: str, name: str, shape: Sequence[int]) -> InvalidInputError:
    """The refusal of labels that are not one number for each example."""
    return InvalidInputError(
        f'{role} data: the labels "{name}" have shape {list(shape)}; wanted is one number for '
        "each example",
        code="bad_data",
        fix="flatten them to one axis, or name another array",
        field="/data/label",
    )


def _missing(role: str, name: str, present: list[str]) -> InvalidInputError:
    return _bad(role, f'no array "{name}"; the file has {", ".join(present[:50])}')


def _bad(role: str, detail: str) -> InvalidInputError:
    return InvalidInputError(
        f"{role} data: {detail}",
        code="bad_data",
        fix="upload numeric arrays of equal length, saved by numpy.savez or safetensors",
        field=f"/data/{role}",
    )


class _Ranges(io.RawIOBase):
    """A remote file as a seekable one, for as many bytes as a plan may read."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size = read, size
        self._at, self._left = 0, _READ

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        wanted = max(0, self._size - self._at)
        wanted = wanted if size < 0 else min(size, wanted)
        if wanted > self._left:
            raise zipfile.BadZipFile("more to read than a plan may")
        self._left -= wanted
        data = self._read(self._at, wanted) if wanted else b""
        self._at += len(data)
        return data
