"""Examples in `.npz` or `.safetensors` arrays, first axis first."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from stiefel.errors import InvalidInputError
from stiefel.specs.data import ArrayData

BLOCK = 4096  # rows written at a time


def read_arrays(
    path: Path, spec: ArrayData, *, role: str
) -> tuple[Iterator[NDArray[np.generic]], NDArray[np.generic]]:
    """Return blocks of examples and all labels.

    Raises:
        InvalidInputError: unreadable file, missing array, object arrays, sizes that differ, or
            numbers that are not finite.
    """
    names = spec.input if isinstance(spec.input, list) else [spec.input]
    arrays = _open(path, [*names, spec.label], role)
    labels = arrays[spec.label]
    for name in names:
        if len(arrays[name]) != len(labels):
            detail = f'array "{name}" has {len(arrays[name])} rows, labels have {len(labels)}'
            raise _bad(role, detail)
    return _blocks([arrays[name] for name in names]), labels


def _open(path: Path, names: list[str], role: str) -> dict[str, NDArray[np.generic]]:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    try:
        if not is_zip:
            from safetensors.numpy import load_file

            return _chosen(load_file(path), names, role)
        with np.load(path, allow_pickle=False) as arrays:
            return _chosen(arrays, names, role)
    except (OSError, zipfile.BadZipFile, SafetensorError) as error:
        raise _bad(role, "the file is neither .npz nor .safetensors") from error


def _chosen(
    arrays: Mapping[str, Any], names: list[str], role: str
) -> dict[str, NDArray[np.generic]]:
    return {name: _array(arrays, name, role) for name in names}


def _array(arrays: Mapping[str, Any], name: str, role: str) -> NDArray[np.generic]:
    if name not in arrays:
        raise _bad(role, f'no array "{name}"; the file has {", ".join(sorted(arrays))}')
    try:
        array: NDArray[np.generic] = arrays[name]
    except ValueError as error:  # an object array would need pickle
        raise _bad(role, f'array "{name}" holds Python objects') from error
    if array.ndim == 0 or array.dtype.kind not in "uifb":
        raise _bad(role, f'array "{name}" must be numeric with examples along its first axis')
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        rows = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        raise _bad(role, f'array "{name}", row {int(np.argmin(rows))}: not a finite number')
    return array


def _blocks(inputs: list[NDArray[np.generic]]) -> Iterator[NDArray[np.generic]]:
    single = inputs[0] if len(inputs) == 1 else None
    for start in range(0, len(inputs[0]), BLOCK):
        if single is not None:
            block = single[start : start + BLOCK]
            if block.ndim == 3:  # grey images without a channel axis
                block = block[:, None]
            yield block if block.dtype == np.uint8 else block.astype(np.float32)
        else:
            parts = [array[start : start + BLOCK] for array in inputs]
            yield np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1).astype(np.float32)


def _bad(role: str, detail: str) -> InvalidInputError:
    return InvalidInputError(
        f"{role} data: {detail}",
        code="bad_data",
        fix="upload numeric arrays of equal length, saved by numpy.savez or safetensors",
        field=f"/data/{role}",
    )
