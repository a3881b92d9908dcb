"""The index of a sharded checkpoint (``model.safetensors.index.json``) and its validation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from stiefel.errors import InvalidInputError
from stiefel.specs.header import TensorTable

MAX_INDEX = 64 * 2**20
ShardIndex = dict[str, str]  # tensor name -> file name


def read_index(raw: bytes) -> ShardIndex:
    """Return the weight map of an index file.

    Raises:
        InvalidInputError: too large, not JSON, or without a ``weight_map`` of strings.
    """
    if len(raw) > MAX_INDEX:
        _refuse("index_too_long", f"the index has {len(raw):,} bytes; the limit is {MAX_INDEX:,}")
    try:
        index: Any = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        _refuse("index_not_json", f"the index is not valid JSON: {str(error)[:120]}")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        _refuse("index_invalid", "the index has no weight_map from tensor names to file names")
    return weight_map


def load_index(path: Path) -> ShardIndex:
    """Return the weight map of the index file at ``path``; refuses like ``read_index``."""
    with path.open("rb") as file:
        return read_index(file.read(MAX_INDEX + 1))


def check_shards(tables: Mapping[str, TensorTable], index: ShardIndex | None) -> None:
    """Refuse shards that contradict each other or their index.

    Raises:
        InvalidInputError: a tensor in two shards (``tensor_in_two_shards``), a shard or tensor
            that the index names and nobody has (``shard_missing``, ``tensor_missing``), or one
            that the index does not name (``tensor_not_in_index``).
    """
    home: dict[str, str] = {}
    for file, table in tables.items():
        for name in table.tensors:
            if name in home:
                _refuse(
                    "tensor_in_two_shards",
                    f"tensor {name!r} is in {home[name]!r} and in {file!r}",
                    tensor=name,
                )
            home[name] = file
    if index is not None:
        _check_index(tables, index, home)


def _check_index(tables: Mapping[str, TensorTable], index: ShardIndex, home: ShardIndex) -> None:
    for name, file in index.items():
        if file not in tables:
            _refuse(
                "shard_missing",
                f"the index places tensor {name[:200]!r} in {file[:200]!r}, which is not an input",
                fix="Add every shard to the spec's input under the name the index gives it.",
                field="/input",
            )
        if home.get(name) != file:
            where = f"it is in {home[name]!r}" if name in home else "no shard has it"
            _refuse(
                "tensor_missing",
                f"the index places tensor {name[:200]!r} in {file!r}, but {where}",
                tensor=name[:512],
            )
    for name, file in home.items():
        if name not in index:
            _refuse(
                "tensor_not_in_index",
                f"tensor {name!r} of {file!r} is not in the index",
                tensor=name,
            )


def _refuse(code: str, detail: str, **kwargs: Any) -> NoReturn:
    kwargs.setdefault("fix", "Upload the shards and the index of one and the same save.")
    raise InvalidInputError(detail, code=code, **kwargs)
