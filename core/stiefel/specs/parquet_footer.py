"""What the footer of a parquet file tells: rows, columns and the ranges of numbers; no pyarrow.

The footer is a structure in thrift's compact protocol at the end of the file, before its length
and four letters. Source: apache/parquet-format, ``parquet.thrift`` and thrift's
``thrift-compact-protocol.md``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stiefel.errors import InvalidInputError

MAX_FOOTER = 2**24
_DEPTH = 16
_MAGIC = b"PAR1"
_BYTES, _UTF8 = 6, 0  # physical type BYTE_ARRAY; converted type UTF8
_INTEGERS = {1: "<i", 2: "<q"}  # physical types INT32 and INT64, as statistics hold them
_NUMBERS = {0, 1, 2, 4, 5}  # and booleans, floats, doubles

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Column:
    """One column at the top of the schema.

    Attributes:
        kind: ``number``, ``numbers`` (a list), ``text``, ``image`` (bytes, or a structure that
            has them) or ``other``.
        values: leaves in all, of lists as many as they hold together.
        least: of whole numbers, where every row group says so; else None.
        most: likewise.
        nulls: how many, where every row group says so; else None.
    """

    name: str
    kind: str
    values: int
    least: int | None
    most: int | None
    nulls: int | None


@dataclass(frozen=True)
class Footer:
    """Number of rows, and the columns by name."""

    rows: int
    columns: dict[str, Column]


def read_footer(read: Read, size: int) -> Footer:
    """Return what the footer says.

    Args:
        read: ``read(start, length)`` gives bytes of the file.
        size: of the file.

    Raises:
        InvalidInputError: the bytes are not parquet (``bad_data``).
    """
    tail = read(max(0, size - 8), min(8, size))
    length = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != _MAGIC or not 0 < length <= min(size - 12, MAX_FOOTER):
        raise _unreadable()
    try:
        facts = _Compact(read(size - 8 - length, length)).structure()
        return _footer(facts)
    except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
        raise _unreadable() from error


def _footer(facts: dict[int, Any]) -> Footer:
    tops = _tops(facts[2])
    chunks: dict[str, list[dict[int, Any]]] = {name: [] for name in tops}
    for group in facts.get(4, []):
        for chunk in group[1]:
            chunks[chunk[3][3][0].decode()].append(chunk[3])
    columns = {name: _column(name, kind, chunks[name]) for name, kind in tops.items()}
    return Footer(int(facts[3]), columns)


def _tops(schema: list[dict[int, Any]]) -> dict[str, str]:
    """Name -> kind of the columns right below the root."""
    found, at = {}, 1
    for _ in range(schema[0].get(5, 0)):
        end = _end(schema, at)
        found[schema[at][4].decode()] = _kind(schema[at:end])
        at = end
    return found


def _end(schema: list[dict[int, Any]], at: int) -> int:
    """Where the branch that begins at ``at`` ends: children follow their parents."""
    open_, at = schema[at].get(5, 0), at + 1
    while open_:
        open_ += schema[at].get(5, 0) - 1
        at += 1
    return at


def _kind(branch: list[dict[int, Any]]) -> str:
    leaves = [element for element in branch if not element.get(5)]
    names = {element[4] for element in leaves}
    if len(branch) == 1:
        (leaf,) = leaves
        if leaf[1] == _BYTES:
            return "text" if leaf.get(6) == _UTF8 or 1 in leaf.get(10, {}) else "image"
        return "number" if _is_numeric(leaf) else "other"
    if len(leaves) == 1 and _is_numeric(leaves[0]):
        return "numbers"
    return "image" if b"bytes" in names else "other"


def _is_numeric(leaf: dict[int, Any]) -> bool:
    """Not a moment or a decimal: of the logical types only INTEGER, number 10 of its union."""
    return leaf[1] in _NUMBERS and (10 not in leaf or 10 in leaf[10])


def _column(name: str, kind: str, chunks: list[dict[int, Any]]) -> Column:
    """Sum up the chunks of one column; of a structure every leaf has its own."""
    values = sum(chunk[5] for chunk in chunks)
    if kind != "number":
        return Column(name, kind, values, None, None, None)
    statistics = [chunk.get(12, {}) for chunk in chunks]
    form = _INTEGERS.get(chunks[0][1]) if chunks else None

    def ends(fields: tuple[int, int]) -> list[int] | None:
        raw = [next((s[f] for f in fields if f in s), None) for s in statistics]
        if form is None or any(item is None for item in raw):
            return None
        return [struct.unpack(form, item)[0] for item in raw if item is not None]

    least, most = ends((6, 2)), ends((5, 1))
    nulls = [s.get(3) for s in statistics]
    known = None if any(count is None for count in nulls) else sum(n for n in nulls if n)
    lowest, highest = min(least) if least else None, max(most) if most else None
    return Column(name, kind, values, lowest, highest, known)


class _Compact:
    """A reader of thrift's compact protocol: structures become dicts by field number."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def structure(self, depth: int = 0) -> dict[int, Any]:
        if depth > _DEPTH:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while (head := self._byte()) != 0:
            kind, step = head & 15, head >> 4
            number = number + step if step else self._integer()
            fields[number] = (kind == 1) if kind in (1, 2) else self._value(kind, depth)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind == 3:
            return self._byte()
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return struct.unpack("<d", self._take(8))[0]
        if kind == 8:
            return self._take(self._unsigned())
        if kind in (9, 10):
            return self._list(depth)
        if kind == 12:
            return self.structure(depth + 1)
        raise ValueError(f"unknown type {kind}")

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        kind, count = head & 15, head >> 4
        if count == 15:
            count = self._unsigned()
        if count > len(self._data) - self._at:  # every element takes a byte at least
            raise ValueError("a list longer than the footer")
        if kind in (1, 2):
            return [self._byte() == 1 for _ in range(count)]
        return [self._value(kind, depth + 1) for _ in range(count)]

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise ValueError("cut short")
        self._at += count
        return self._data[self._at - count : self._at]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number too long")

    def _integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)


def _unreadable() -> InvalidInputError:
    return InvalidInputError(
        "the file is not readable as parquet", code="bad_data", fix="upload a parquet file"
    )
