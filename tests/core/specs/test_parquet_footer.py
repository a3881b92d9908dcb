"""The footer of parquet files, read without pyarrow, against what pyarrow wrote."""

from __future__ import annotations

import io
import random
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stiefel.errors import InvalidInputError
from stiefel.specs.parquet_footer import Footer, read_footer


def footer_of(content: bytes) -> Footer:
    return read_footer(lambda start, length: content[start : start + length], len(content))


def written(row_group_size: int = 20, **columns: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, row_group_size=row_group_size)
    return buffer.getvalue()


def test_columns_are_told_by_kind_range_and_number() -> None:
    found = footer_of(
        written(
            image=[{"bytes": b"x", "path": None}] * 50,
            raw=[b"x"] * 50,
            text=["a"] * 50,
            names=pa.array(["a"] * 50).dictionary_encode(),
            label=[n % 3 - 1 for n in range(50)],
            small=pa.array([7] * 50, pa.uint8()),
            holes=[None, *range(49)],
            real=np.zeros(50),
            lists=[[1.0, 2.0]] * 50,
            fixed=pa.array([[1, 2, 3]] * 50, pa.list_(pa.int32(), 3)),
            moment=pa.array([0] * 50, pa.timestamp("s")),
        )
    )
    assert found.rows == 50
    kinds = {name: column.kind for name, column in found.columns.items()}
    assert kinds == {
        "image": "image",
        "raw": "image",
        "text": "text",
        "names": "text",
        "label": "number",
        "small": "number",
        "holes": "number",
        "real": "number",
        "lists": "numbers",
        "fixed": "numbers",
        "moment": "other",
    }
    label, holes = found.columns["label"], found.columns["holes"]
    assert (label.least, label.most, label.nulls) == (-1, 1, 0)
    assert (holes.least, holes.most, holes.nulls) == (0, 48, 1)
    assert (found.columns["real"].least, found.columns["lists"].values) == (None, 100)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1", b"x" * 99])
def test_what_is_no_parquet_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidInputError, match="not readable as parquet"):
        footer_of(content)


def test_damaged_footers_are_refused_or_read_but_never_crash() -> None:
    good = written(a=[1, 2], b=["x", "y"])
    chance = random.Random(0)
    for _ in range(3000):
        content = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        with suppress(InvalidInputError):
            footer_of(bytes(content))
