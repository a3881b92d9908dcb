"""Parquet: what images and columns become, and what is refused by row and column."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from parquet_files import IMAGES, huge_png, png, write_parquet
from PIL import Image

from stiefel.errors import InvalidInputError
from stiefel.specs.data import ParquetData
from stiefel.training.data.opening import open_data
from stiefel.training.data.parquet import decode


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [png()], "label": [0]}, 'no column "image"; the file has label, picture'),
        ({"image": [png()], "class": [0]}, 'no column "label"'),
        ({"image": [png(), None], "label": [0, 1]}, 'row 1, column "image": no image bytes'),
        (
            {"image": [png(), {"bytes": b"\x89PNG cut", "path": None}], "label": [0, 1]},
            'row 1, column "image": the image cannot be decoded',
        ),
        (
            {"image": [png(), png((9, 8))], "label": [0, 1]},
            'row 1, column "image": image of shape',
        ),
        ({"image": [png()] * 3, "label": [0, 1, -1]}, 'column "label", row 2'),
        ({"image": [png()] * 3, "label": [0, None, 1]}, 'column "label" has nulls'),
        ({"image": [png()], "label": [0]}, "too few to hold out"),
        ({"image": [[1.0], [1.0, 2.0]], "label": [0, 1]}, 'column "image" is not numeric'),
        ({"image": ["text", None], "label": [0, 1]}, 'row 1, column "image": no text'),
        ({"image": [1.0, float("nan")], "label": [0, 1]}, 'row 1, column "image"'),
        ({"image": [1.0] * 3, "label": [1.0, 1.0, 1.5]}, "row 2: 1.5 is not a class"),
        ({"image": [1.0, 2.0], "label": ["cat", "dog"]}, "row 0: 'cat' is not a class"),
        ({"image": [huge_png()], "label": [0]}, 'row 0, column "image": more than'),
    ],
)
def test_bad_parquet_is_refused_by_row_and_column(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    write_parquet(tmp_path / "train", **columns)
    with pytest.raises(InvalidInputError) as caught:
        open_data(IMAGES, tmp_path, seed=0)
    assert message in caught.value.detail
    assert caught.value.fix
    assert caught.value.field


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
@pytest.mark.parametrize("column", ["x", "label"])
def test_damaged_pages_are_refused_by_column(compression: str, column: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    columns = {"x": draw.standard_normal(4000), "label": draw.integers(0, 9, 4000)}
    options: dict[str, Any] = {"compression": compression, "use_dictionary": False}
    pq.write_table(pa.table(columns), tmp_path / "train", **options)
    index = list(columns).index(column)
    chunk = pq.ParquetFile(tmp_path / "train").metadata.row_group(0).column(index)
    content = bytearray((tmp_path / "train").read_bytes())
    middle = chunk.data_page_offset + chunk.total_compressed_size // 2
    content[middle : middle + 200] = bytes(200)
    (tmp_path / "train").write_bytes(content)
    with pytest.raises(InvalidInputError, match=f'column "{column}" cannot be decoded') as caught:
        open_data(IMAGES.model_copy(update={"input": "x"}), tmp_path, seed=0)
    assert caught.value.code == "bad_data"


def test_a_regression_needs_finite_answers(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train", x=[1.0] * 20, label=[0.5] * 7 + [float("nan")] + [0.5] * 12)
    spec = ParquetData(kind="parquet", train="art_1", input="x", task="regression")
    with pytest.raises(InvalidInputError, match="row 7: nan is not a finite number"):
        open_data(spec, tmp_path, seed=0)


def test_categories_of_pandas_are_text(tmp_path: Path) -> None:
    texts = pa.array(["be", "not to be"] * 10).dictionary_encode()
    pq.write_table(pa.table({"x": texts, "label": [0, 1] * 10}), tmp_path / "train")
    spec = ParquetData(kind="parquet", train="art_1", input="x", context=4)
    assert open_data(spec, tmp_path, seed=0).signature.kind == "tokens"


@pytest.mark.parametrize(
    ("mode", "shape"), [("1", (1, 8, 8)), ("L", (1, 8, 8)), ("LA", (1, 8, 8)), ("P", (3, 8, 8))]
)
def test_grey_images_have_one_channel(mode: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("L", (8, 8), 200).convert(mode).save(stream, format="PNG")
    write_parquet(tmp_path / "train", image=[stream.getvalue()] * 20, label=[0, 1] * 10)
    assert open_data(IMAGES, tmp_path, seed=0).signature.shape == shape


def test_grey_of_sixteen_bits_keeps_its_levels() -> None:
    levels = np.array([[0, 257, 1028], [25_700, 60_138, 65_535]], np.uint16)
    stream = io.BytesIO()
    Image.fromarray(levels).save(stream, format="PNG")
    image = decode(stream.getvalue(), "row 0", "train")
    assert image.tolist() == [[[0, 1, 4], [100, 234, 255]]]


def test_bytes_that_are_not_parquet_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train").write_bytes(b"not parquet")
    with pytest.raises(InvalidInputError, match="not readable as parquet"):
        open_data(IMAGES, tmp_path, seed=0)
