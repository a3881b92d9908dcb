"""Build safetensors bytes by hand, right or wrong."""

from __future__ import annotations

import json
from typing import Any

from stiefel.specs.header import TensorTable, read_table


def entry(shape: list[Any], begin: int, end: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def file_of(header: Any, body: int | bytes = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    tail = bytes(body) if isinstance(body, int) else body
    return len(text).to_bytes(8, "little") + text + tail


def table_of(content: bytes) -> TensorTable:
    return read_table(lambda offset, length: content[offset : offset + length], len(content))
