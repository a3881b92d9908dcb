"""Parquet files made for tests, in the Hugging Face layout."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from stiefel.specs.data import ParquetData

IMAGES = ParquetData(kind="parquet", train="art_1", input="image")


def png(size: tuple[int, int] = (8, 8), value: int = 7) -> dict[str, bytes | None]:
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, format="PNG")
    return {"bytes": stream.getvalue(), "path": None}


def huge_png() -> dict[str, bytes | None]:
    """A PNG whose header claims 30,000 x 30,000 pixels."""
    content = bytearray(png()["bytes"] or b"")
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return {"bytes": bytes(content), "path": None}


def write_parquet(path: Path, **columns: list[object]) -> None:
    pq.write_table(pa.table(columns), path)
