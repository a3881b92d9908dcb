"""Parquet in the Hugging Face layout: images as {bytes, path}, text, or numeric columns."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stiefel.errors import InvalidInputError
from stiefel.specs.data import ParquetData
from stiefel.training.data.rows import BLOCK_BYTES, Examples

MAX_PIXELS = 4096 * 4096  # a decompression bomb is refused before it is decoded
BLOCK = 1024  # rows decoded at a time, fewer where they are large


def read_parquet(path: Path, spec: ParquetData, *, role: str) -> Examples:
    """Return blocks of examples and all labels.

    Args:
        path: the staged file.
        spec: names the columns.
        role: ``train`` or ``test``, for error messages.

    Raises:
        InvalidInputError: not parquet, damaged, a missing column, a null, or (as the blocks are
            read) an image that cannot be decoded or has another size than the first, no text, no
            number; names the column and, but for damage, the row.
    """
    columns = spec.input if isinstance(spec.input, list) else [spec.input]
    file = open_parquet(path, [*columns, spec.label], role)
    with _decoding([spec.label], role):
        labels = file.read(columns=[spec.label]).column(0)
    if labels.null_count:
        raise _bad(role, f'column "{spec.label}" has nulls', "remove the rows without a label")
    tokens = len(columns) == 1 and is_text(file.schema_arrow.field(columns[0]).type)
    blocks = (
        _texts(file, columns[0], spec.context, role) if tokens else _blocks(file, columns, role)
    )
    return Examples(blocks, labels.to_numpy(), tokens)


def open_parquet(path: Path, columns: list[str], role: str) -> Any:
    """Return the file, which has every one of ``columns``.

    Raises:
        InvalidInputError: not parquet, or a missing column.
    """
    import pyarrow.parquet as pq

    try:
        # Without a buffer of its own it would hold every chunk of a row group at once.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20)
    except Exception as error:  # pyarrow raises many types for bytes that are not parquet
        raise _bad(role, "the file is not readable as parquet", "upload a parquet file") from error
    names = set(file.schema_arrow.names)
    for column in columns:
        if column not in names:
            have = ", ".join(sorted(names))
            raise _bad(role, f'no column "{column}"; the file has {have}', "name one of these")
    return file


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds text, be it in a dictionary (pandas' categories)."""
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_string(kind) or types.is_large_string(kind))


def read_texts(file: Any, column: str, role: str) -> Iterator[bytes]:
    """Yield the UTF-8 bytes of every row of a text column.

    Raises:
        InvalidInputError: a row without text.
    """
    row = 0
    for batch in _batches(file, [column], role):
        for text in batch.column(0).to_pylist():
            if text is None:
                raise _bad(role, f'row {row}, column "{column}": no text', "remove the row")
            yield text.encode()
            row += 1


def _texts(file: Any, column: str, context: int, role: str) -> Iterator[NDArray[np.generic]]:
    """Blocks (k, context) of bytes, each one higher than it is, so that 0 pads short texts."""
    block: list[NDArray[np.generic]] = []
    for text in read_texts(file, column, role):
        ids = np.zeros(context, np.int16)
        kept = np.frombuffer(text[:context], np.uint8)
        ids[: len(kept)] = kept.astype(np.int16) + 1
        block.append(ids)
        if len(block) * context >= BLOCK_BYTES // 8:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def _batches(file: Any, columns: list[str], role: str) -> Iterator[Any]:
    with _decoding(columns, role):
        yield from file.iter_batches(batch_size=_rows_at_a_time(file, columns), columns=columns)


@contextmanager
def _decoding(columns: Sequence[str], role: str) -> Iterator[None]:
    """A footer that can be read does not mean that the pages can."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        names = ", ".join(f'"{name}"' for name in columns[:5])
        detail = f"column {names} cannot be decoded: the file is damaged"
        raise _bad(role, detail, "write the file again and upload it") from error


def _rows_at_a_time(file: Any, columns: list[str]) -> int:
    """As many rows as fit a block by what they take in the file, uncompressed."""
    facts, total = file.metadata, 0
    for group in range(facts.num_row_groups):
        for index in range(facts.num_columns):
            chunk = facts.row_group(group).column(index)
            if chunk.path_in_schema.split(".")[0] in columns:
                total += chunk.total_uncompressed_size
    mean = max(1, total // max(1, facts.num_rows))
    return int(max(1, min(BLOCK, BLOCK_BYTES // mean)))


def _blocks(file: Any, columns: list[str], role: str) -> Iterator[NDArray[np.generic]]:
    first = 0
    shape: tuple[int, ...] | None = None
    for batch in _batches(file, columns, role):
        if len(columns) == 1 and _is_image(batch.schema.field(0).type):
            for block in _images(batch.column(0), first, role, columns[0], shape):
                shape = block.shape[1:]
                yield block
        else:
            yield _numbers(batch, columns, first, role)
        first += len(batch)


def _is_image(kind: Any) -> bool:
    import pyarrow.types as types

    struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(struct or types.is_binary(kind))


def _images(
    cells: Any, first: int, role: str, column: str, shape: tuple[int, ...] | None
) -> Iterator[NDArray[np.generic]]:
    """Decoded images, as many in a block as are small enough together."""
    images: list[NDArray[np.generic]] = []
    for offset, cell in enumerate(cells):
        content = cell.as_py()
        data = content.get("bytes") if isinstance(content, dict) else content
        image = decode(data, f'row {first + offset}, column "{column}"', role)
        shape = shape or image.shape
        if image.shape != shape:
            raise _bad(
                role,
                f'row {first + offset}, column "{column}": image of shape {list(image.shape)}, '
                f"the first has {list(shape)}",
                "resize all images to one size and one number of channels",
            )
        images.append(image)
        if len(images) * image.nbytes >= BLOCK_BYTES:
            yield np.stack(images)
            images = []
    if images:
        yield np.stack(images)


def decode(data: bytes | None, where: str, role: str) -> NDArray[np.generic]:
    """Return (C, H, W) bytes of an image: one channel where it is grey, else three.

    Transparency is left out, and grey of 16 bits brought to 8.

    Raises:
        InvalidInputError: no image, of too many pixels, or one that cannot be decoded.
    """
    from PIL import Image

    if not data:
        raise _bad(role, f"{where}: no image bytes", "embed the bytes, not only the path")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            array = _pixels(image)
    except Image.DecompressionBombError as error:
        detail = f"{where}: more than {MAX_PIXELS} pixels"
        raise _bad(role, detail, "use smaller images") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise _bad(role, f"{where}: the image cannot be decoded", "re-encode it as PNG") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _pixels(image: Any) -> NDArray[np.uint8]:
    """Bytes: (H, W) of a grey image, its transparency left out, or (H, W, 3)."""
    if image.mode.startswith("I"):  # grey of 16 bits, which PIL's own conversion cuts off at 255
        return (np.asarray(image).astype(np.uint32) // 257).astype(np.uint8)
    grey = image.mode in {"1", "L", "LA"}
    return np.asarray(image.convert("L" if grey else "RGB"))


def _numbers(batch: Any, columns: list[str], first: int, role: str) -> NDArray[np.generic]:
    parts = []
    for index, column in enumerate(columns):
        try:
            with np.errstate(over="ignore"):  # what overflows is not finite, and refused below
                values = np.stack(batch.column(index).to_pylist()).astype(np.float32)
        except (TypeError, ValueError) as error:
            fix = "name numeric columns, all rows of equal length"
            raise _bad(role, f'column "{column}" is not numeric', fix) from error
        finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite.all():
            row = first + int(np.argmin(finite))
            raise _bad(role, f'row {row}, column "{column}": not a finite number', "mend the row")
        parts.append(values.reshape(len(values), -1))
    return np.concatenate(parts, axis=1)


def _bad(role: str, detail: str, fix: str) -> InvalidInputError:
    return InvalidInputError(
        f"{role} data: {detail}", code="bad_data", fix=fix, field=f"/data/{role}"
    )
