"""Parquet in the Hugging Face layout: images as {bytes, path}, or numeric columns."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stiefel.errors import InvalidInputError
from stiefel.specs.data import ParquetData

MAX_PIXELS = 4096 * 4096  # a decompression bomb is refused before it is decoded
BLOCK = 1024  # rows decoded at a time


def read_parquet(
    path: Path, spec: ParquetData, *, role: str
) -> tuple[Iterator[NDArray[np.generic]], NDArray[np.generic]]:
    """Return blocks of examples and all labels.

    Args:
        path: the staged file.
        spec: names the columns.
        role: ``train`` or ``test``, for error messages.

    Raises:
        InvalidInputError: not parquet, a missing column, a null, or an image that cannot be
            decoded or has another size than the first; names the column and the row.
    """
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except Exception as error:  # pyarrow raises many types for bytes that are not parquet
        raise _bad(role, "the file is not readable as parquet", "upload a parquet file") from error
    names = set(file.schema_arrow.names)
    columns = spec.input if isinstance(spec.input, list) else [spec.input]
    for column in (*columns, spec.label):
        if column not in names:
            have = ", ".join(sorted(names))
            raise _bad(role, f'no column "{column}"; the file has {have}', "name one of these")
    labels = file.read(columns=[spec.label]).column(0)
    if labels.null_count:
        raise _bad(role, f'column "{spec.label}" has nulls', "remove the rows without a label")
    return _blocks(file, columns, role), labels.to_numpy()


def _blocks(file: Any, columns: list[str], role: str) -> Iterator[NDArray[np.generic]]:
    first = 0
    shape: tuple[int, ...] | None = None
    for batch in file.iter_batches(batch_size=BLOCK, columns=columns):
        if len(columns) == 1 and _is_image(batch.schema.field(0).type):
            block = _images(batch.column(0).to_pylist(), first, role, columns[0], shape)
            shape = block.shape[1:]
        else:
            block = _numbers(batch, columns, first, role)
        yield block
        first += len(block)


def _is_image(kind: Any) -> bool:
    import pyarrow.types as types

    struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    return bool(struct or types.is_binary(kind))


def _images(
    cells: list[Any], first: int, role: str, column: str, shape: tuple[int, ...] | None
) -> NDArray[np.generic]:
    images = []
    for offset, cell in enumerate(cells):
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        image = _decode(data, f'row {first + offset}, column "{column}"', role)
        shape = shape or image.shape
        if image.shape != shape:
            raise _bad(
                role,
                f'row {first + offset}, column "{column}": image of shape {list(image.shape)}, '
                f"the first has {list(shape)}",
                "resize all images to one size and one number of channels",
            )
        images.append(image)
    return np.stack(images)


def _decode(data: bytes | None, where: str, role: str) -> NDArray[np.generic]:
    from PIL import Image

    if not data:
        raise _bad(role, f"{where}: no image bytes", "embed the bytes, not only the path")
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _bad(role, f"{where}: more than {MAX_PIXELS} pixels", "use smaller images")
            array = np.asarray(image if image.mode in {"L", "RGB"} else image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, InvalidInputError):
            raise
        raise _bad(role, f"{where}: the image cannot be decoded", "re-encode it as PNG") from error
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def _numbers(batch: Any, columns: list[str], first: int, role: str) -> NDArray[np.generic]:
    parts = []
    for index, column in enumerate(columns):
        try:
            values = np.stack(batch.column(index).to_pylist()).astype(np.float32)
        except (TypeError, ValueError) as error:
            raise _bad(role, f'column "{column}" is not numeric', "name numeric columns") from error
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
