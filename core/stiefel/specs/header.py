"""Read a safetensors header by byte range, under limits, without torch.

The format: 8 bytes, little-endian, the length of a JSON header; the header; the tensors'
bytes, contiguous and covering the rest of the file. Everything the reference library
refuses is refused here too, and some things it lets pass are not: duplicate names, unknown
keys, and sizes that serve only to exhaust the reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

from stiefel.errors import InvalidInputError
from stiefel.specs.dtypes import BITS
from stiefel.specs.foreign import recognise

MAX_HEADER = 16 * 2**20
MAX_TENSORS = 200_000
MAX_RANK = 8
MAX_NAME = 512
MAX_METADATA = 2**20
MAX_FILE = 2**53  # sizes stay exact in every JSON reader

REWRITE = "Write the file again with the safetensors library."
UPLOAD = "Upload the file again and compare its size and digest."

Read = Callable[[int, int], bytes]


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a file; ``begin`` and ``end`` are offsets from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes the tensor occupies."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class TensorTable:
    """The tensors of one file in the order of their offsets, and the header's metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    header_bytes: int  # length prefix included: the offset of the first tensor's bytes
    size: int


def read_table(read: Read, size: int) -> TensorTable:
    """Return the table of a safetensors file of ``size`` bytes.

    Args:
        read: ``read(offset, length)`` returns exactly ``length`` bytes of the file.
        size: bytes of the whole file.

    Raises:
        InvalidInputError: the file is something else (``pickle_file``, ``html_page``, ...),
            is cut short, breaks the format or a limit; ``code`` tells which.
    """
    length = _header_length(read, size)
    header = _parse(read(8, length))
    metadata = _metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        _refuse(
            "too_many_tensors",
            f"the header lists {len(header):,} tensors; the limit is {MAX_TENSORS:,}",
            "Split the checkpoint into shards.",
        )
    start = 8 + length
    tensors = [_tensor(name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_cover(tensors, start, size)
    return TensorTable({tensor.name: tensor for tensor in tensors}, metadata, start, size)


def _refuse(code: str, detail: str, fix: str = REWRITE, tensor: str | None = None) -> NoReturn:
    raise InvalidInputError(detail, code=code, fix=fix, tensor=tensor)


def _header_length(read: Read, size: int) -> int:
    if size < 10:
        start = read(0, size) if size else b""
        raise recognise(start) or InvalidInputError(
            f"the file has {size} bytes; a safetensors file has at least 10",
            code="file_too_short",
            fix=UPLOAD,
        )
    start = read(0, min(size, 512))
    length = int.from_bytes(start[:8], "little")
    if start[8:9] == b"{" and length <= MAX_HEADER:
        if length + 8 > size:
            _refuse(
                "header_truncated",
                f"the header needs {length + 8:,} bytes, the file ends after {size:,}",
                UPLOAD,
            )
        if size <= MAX_FILE:
            return length
    foreign = recognise(start)
    if foreign is not None:
        raise foreign
    if start[8:9] != b"{":
        _refuse(
            "not_safetensors",
            "the file is not in the safetensors format: no JSON header follows the length prefix",
        )
    _refuse(
        "header_too_long",
        f"the header claims {length:,} bytes; the limit is {MAX_HEADER:,}",
        "Split the checkpoint into shards, or check that the file is what you meant to send.",
    )


class _HeaderError(ValueError):
    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise _HeaderError("duplicate_key", f"the header names {twice[:100]!r} twice")
    return result


def _integer(text: str) -> int:
    if text.startswith("-") or len(text) > 19:
        raise _HeaderError(
            "header_number", f"the header holds the number {text[:30]}, not a count or an offset"
        )
    return int(text)


def _not_integer(text: str) -> NoReturn:
    raise _HeaderError("header_number", f"the header holds the number {text[:30]}, not an integer")


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        header = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_int=_integer,
            parse_float=_not_integer,
            parse_constant=_not_integer,
        )
    except _HeaderError as fault:
        _refuse(fault.code, str(fault))
    except UnicodeDecodeError:
        _refuse("header_not_utf8", "the header is not valid UTF-8")
    except (ValueError, RecursionError) as error:
        _refuse("header_not_json", f"the header is not valid JSON: {str(error)[:120]}")
    if not isinstance(header, dict):
        _refuse("header_not_json", "the header is not a JSON object")
    return header


def _metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        _refuse("metadata_invalid", "__metadata__ must map strings to strings")
    texts = [text for pair in value.items() for text in pair]
    if any(not _is_unicode(text) for text in texts):
        _refuse("metadata_invalid", "__metadata__ holds text that is not valid Unicode")
    if sum(map(len, texts)) > MAX_METADATA:
        _refuse(
            "metadata_too_long",
            f"__metadata__ exceeds {MAX_METADATA:,} characters",
            "Move large metadata to a file of its own.",
        )
    return value


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _check_name(name: str) -> None:
    # isprintable() also refuses lone surrogates, so encoding cannot fail.
    if name and name.isprintable() and len(name.encode()) <= MAX_NAME:
        return
    _refuse(
        "tensor_name",
        f"the tensor name {name[:100]!r} is empty, longer than {MAX_NAME} bytes, "
        "or not printable text",
        "Rename the tensor.",
    )


def _tensor(name: str, entry: Any, start: int) -> TensorInfo:
    _check_name(name)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(
            "tensor_entry",
            f"tensor {name!r} must have exactly dtype, shape and data_offsets",
            tensor=name,
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(
            "tensor_dtype",
            f"tensor {name!r} has the unknown dtype {str(dtype)[:40]!r}",
            "Use one of: " + ", ".join(BITS) + ".",
            name,
        )
    if not _is_counts(shape) or len(shape) > MAX_RANK:
        _refuse(
            "tensor_shape",
            f"the shape of tensor {name!r} is not a list of at most {MAX_RANK} sizes",
            tensor=name,
        )
    if not _is_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(
            "tensor_offsets",
            f"the data_offsets of tensor {name!r} are not [begin, end]",
            tensor=name,
        )
    begin, end = offsets
    if prod(shape) * BITS[dtype] != 8 * (end - begin):
        _refuse(
            "tensor_size",
            f"tensor {name!r}: shape {shape} of {dtype} needs "
            f"{prod(shape) * BITS[dtype] / 8:,g} bytes, its offsets span {end - begin:,}",
            tensor=name,
        )
    return TensorInfo(name, dtype, tuple(shape), start + begin, start + end)


def _is_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_cover(tensors: Sequence[TensorInfo], start: int, size: int) -> None:
    position = start
    for tensor in tensors:
        if tensor.begin < position:
            _refuse(
                "overlapping_tensors",
                f"tensor {tensor.name!r} begins at byte "
                f"{tensor.begin - start:,}, inside the tensor before it",
                tensor=tensor.name,
            )
        if tensor.begin > position:
            _refuse(
                "gap_between_tensors",
                f"{tensor.begin - position:,} bytes before tensor "
                f"{tensor.name!r} belong to no tensor",
                tensor=tensor.name,
            )
        position = tensor.end
    if position > size:
        last = tensors[-1].name
        _refuse(
            "file_truncated",
            f"the tensors need {position:,} bytes, the file ends after {size:,}",
            UPLOAD,
            last,
        )
    if position < size:
        _refuse(
            "trailing_bytes",
            f"{size - position:,} bytes after the last tensor belong to no tensor",
            UPLOAD,
        )
