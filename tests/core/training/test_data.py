"""Data: what is read, in which order, and what is refused by row and column."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from parquet_files import IMAGES, png, write_parquet
from safetensors.numpy import save_file

from stiefel.errors import InvalidInputError
from stiefel.specs.data import AddingProblem, ArrayData, CopyingMemory, ParquetData, TextData
from stiefel.training.data.opening import open_data


def write_images(path: Path, count: int = 40) -> None:
    write_parquet(
        path,
        image=[png(value=i) for i in range(count)],
        label=[i % 3 for i in range(count)],
    )


ARRAYS = ArrayData(kind="arrays", train="art_1", input="x", label="y")


def test_images_are_read_standardised_and_held_out(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    data = open_data(IMAGES, tmp_path, seed=0)
    assert (data.signature.kind, data.signature.shape, data.signature.outputs) == (
        "image",
        (1, 8, 8),
        3,
    )
    seen = torch.cat([batch.x for batch in data.train(epoch=0, first=0, batch_size=6)])
    assert seen.shape == (36, 1, 8, 8)
    assert abs(float(seen.mean())) < 1e-5
    assert sum(len(batch.y) for batch in data.test(batch_size=3)) == 4


def test_the_order_is_a_function_of_seed_epoch_and_batch(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    spec = IMAGES.model_copy(update={"augment": "flip_shift"})
    whole = list(open_data(spec, tmp_path, seed=1).train(epoch=3, first=0, batch_size=5))
    rest = list(open_data(spec, tmp_path, seed=1).train(epoch=3, first=4, batch_size=5))
    assert all(
        torch.equal(a.x, b.x) and torch.equal(a.y, b.y)
        for a, b in zip(whole[4:], rest, strict=True)
    )
    other = next(iter(open_data(spec, tmp_path, seed=1).train(epoch=4, first=0, batch_size=5)))
    assert not torch.equal(whole[0].y, other.y) or not torch.equal(whole[0].x, other.x)


def test_a_shifted_image_is_the_image_moved_by_no_more_than_the_spec_says(tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((40, 1, 8, 8), dtype=np.float32)
    with (tmp_path / "train").open("wb") as file:
        np.savez(file, x=images, y=np.arange(40) % 3)
    still = next(iter(open_data(ARRAYS, tmp_path, seed=1).train(epoch=0, first=0, batch_size=20)))
    spec = ARRAYS.model_copy(update={"augment": "shift", "augment_pixels": 1})
    moved = next(iter(open_data(spec, tmp_path, seed=1).train(epoch=0, first=0, batch_size=20)))
    assert not torch.equal(still.x, moved.x)
    padded = torch.nn.functional.pad(still.x, (1, 1, 1, 1), mode="replicate")
    places = torch.stack([padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
    assert (places == moved.x).flatten(2).all(dim=2).any(dim=0).all()


def test_pixels_as_a_permuted_sequence_keep_their_values(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    plain = open_data(IMAGES, tmp_path, seed=0)
    spec = IMAGES.model_copy(update={"as_sequence": True, "permute": 5})
    permuted = open_data(spec, tmp_path, seed=0)
    assert permuted.signature.shape == (64, 1)
    a = next(iter(plain.test(batch_size=4))).x.flatten(1)
    b = next(iter(permuted.test(batch_size=4))).x.flatten(1)
    assert torch.equal(a.sort(dim=1).values, b.sort(dim=1).values)


def test_texts_become_padded_bytes_with_their_labels(tmp_path: Path) -> None:
    texts = ["", "short", "a long text that is cut", "ä"] * 10
    write_parquet(tmp_path / "train", text=texts, label=[i % 3 for i in range(40)])
    spec = ParquetData(kind="parquet", train="art_1", input="text", context=8)
    data = open_data(spec, tmp_path, seed=0)
    found = data.signature
    assert (found.kind, found.shape, found.outputs) == ("tokens", (8,), 3)
    assert (found.vocabulary, found.per_step) == (257, False)
    rows = torch.cat([batch.x for batch in data.train(epoch=0, first=0, batch_size=4)])
    assert {bytes(int(i) - 1 for i in row if i) for row in rows} == {
        text.encode()[:8] for text in texts
    }
    assert rows.dtype == torch.int64
    with pytest.raises(InvalidInputError, match="as_sequence is for images"):
        open_data(spec.model_copy(update={"as_sequence": True}), tmp_path, seed=0)


def test_a_text_column_is_read_as_one_text(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train", text=["one line", "another"] * 50, other=[1] * 100)
    spec = TextData(kind="text", train="art_1", context=8, column="text")
    rows = next(iter(open_data(spec, tmp_path, seed=0).test(batch_size=99))).x
    whole = b"one line\nanother\n" * 50
    assert all(bytes(row.tolist()) in whole for row in rows)
    with pytest.raises(InvalidInputError, match='no column "words"; the file has other, text'):
        open_data(spec.model_copy(update={"column": "words"}), tmp_path, seed=0)
    with pytest.raises(InvalidInputError, match='column "other" holds int64, not text'):
        open_data(spec.model_copy(update={"column": "other"}), tmp_path, seed=0)


def test_arrays_are_read_in_blocks_whatever_their_order(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3000, 30, 40)).astype(np.float32)
    y = np.arange(3000) % 3
    first = None
    for stored in (x, np.asfortranarray(x), x.astype(">f4")):
        with (tmp_path / "train").open("wb") as file:
            np.savez_compressed(file, x=stored, y=y)
        batch = next(iter(open_data(ARRAYS, tmp_path, seed=0).test(batch_size=50)))
        first = batch if first is None else first
        assert torch.equal(batch.x, first.x)
    save_file({"x": x, "y": y}, tmp_path / "train")
    batch = next(iter(open_data(ARRAYS, tmp_path, seed=0).test(batch_size=50)))
    assert first is not None
    assert torch.equal(batch.x, first.x)
    x[2999, 3, 3] = np.inf
    save_file({"x": x, "y": y}, tmp_path / "train")
    with pytest.raises(InvalidInputError, match="row 2999: not a finite number"):
        open_data(ARRAYS, tmp_path, seed=0)


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def test_arrays_from_npz_and_safetensors_agree(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    x = np.random.default_rng(0).standard_normal((30, 5), dtype=np.float32)
    y = np.arange(30) % 4
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save_arrays(tmp_path / "a" / "train", x=x, y=y)
    save_file({"x": x, "y": y}, tmp_path / "b" / "train")
    one = next(iter(open_data(ARRAYS, tmp_path / "a", seed=0).test(batch_size=3)))
    two = next(iter(open_data(ARRAYS, tmp_path / "b", seed=0).test(batch_size=3)))
    assert torch.equal(one.x, two.x)
    assert torch.equal(one.y, two.y)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((4, 2))}, 'no array "y"'),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3)}, "4 rows, labels have 3"),
        ({"x": np.full((4, 2), np.inf), "y": np.zeros(4)}, 'array "x", row 0'),
        ({"x": np.zeros((4, 2)), "y": np.full(4, 0.5)}, "is not a class"),
        ({"x": np.array([{}, {}], dtype=object), "y": np.zeros(2)}, "Python objects"),
        ({"x": np.zeros((4, 0)), "y": np.zeros(4)}, 'array "x" of shape [4, 0] holds no numbers'),
        ({"x": np.zeros((4, 2)), "y": np.zeros((4, 1))}, 'the labels "y" have shape [4, 1]'),
        ({"x": np.full((4, 2), 1e300), "y": np.zeros(4)}, 'array "x", row 0'),
        ({"x": np.zeros((4, 2)), "y": np.array([0, 0, 0, 2.5])}, "row 3: 2.5 is not a class"),
    ],
)
def test_bad_arrays_are_refused(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    save_arrays(tmp_path / "train", **arrays)
    with pytest.raises(InvalidInputError) as caught:
        open_data(ARRAYS, tmp_path, seed=0)
    assert message in caught.value.detail


def test_a_file_that_ends_early_is_called_damaged(tmp_path: Path) -> None:
    x = np.asfortranarray(np.arange(40.0).reshape(20, 2))
    save_arrays(tmp_path / "train", x=x, y=np.zeros(20))
    with zipfile.ZipFile(tmp_path / "train") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "train", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content[:-8] if name == "x.npy" else content)
    with pytest.raises(InvalidInputError, match="the file is damaged"):
        open_data(ARRAYS, tmp_path, seed=0)


@pytest.mark.parametrize(("shape", "seen"), [((20,), (1,)), ((20, 2, 2, 2, 2), (16, 1))])
def test_arrays_of_any_dimension_become_examples(
    shape: tuple[int, ...], seen: tuple[int, ...], tmp_path: Path
) -> None:
    save_arrays(tmp_path / "train", x=np.arange(np.prod(shape)).reshape(shape), y=np.zeros(20))
    spec = ARRAYS.model_copy(update={"as_sequence": len(seen) == 2, "permute": None})
    data = open_data(spec, tmp_path, seed=0)
    assert data.signature.shape == seen
    assert next(iter(data.train(epoch=0, first=0, batch_size=3))).x.shape == (3, *seen)


def test_text_targets_are_the_next_bytes(tmp_path: Path) -> None:
    text = b"the quick brown fox jumps over the lazy dog. " * 20
    (tmp_path / "train").write_bytes(text)
    data = open_data(TextData(kind="text", train="art_1", context=16), tmp_path, seed=0)
    for batch in data.train(epoch=0, first=0, batch_size=4):
        assert torch.equal(batch.x[:, 1:], batch.y[:, :-1])
    (tmp_path / "train").write_bytes(b"\xff\xfe" * 100)
    with pytest.raises(InvalidInputError, match="not UTF-8"):
        open_data(TextData(kind="text", train="art_1", context=16), tmp_path, seed=0)


def test_copying_memory_asks_for_the_first_symbols() -> None:
    spec = CopyingMemory(kind="copying_memory", delay=7, length=3)
    batch = next(iter(open_data(spec, Path(), seed=0).train(epoch=0, first=0, batch_size=5)))
    assert torch.equal(batch.x.argmax(-1)[:, :3], batch.y[:, -3:])
    assert not batch.y[:, :-3].any()


def test_adding_problem_answers_the_sum_of_the_marked() -> None:
    spec = AddingProblem(kind="adding_problem", length=11, train_examples=40, test_examples=7)
    data = open_data(spec, Path(), seed=0)
    batch = next(iter(data.train(epoch=0, first=0, batch_size=8)))
    assert torch.allclose((batch.x[..., 0] * batch.x[..., 1]).sum(1), batch.y)
    assert torch.equal(batch.x[..., 1].sum(1), torch.full((8,), 2.0))
    assert sum(len(b.y) for b in data.test(batch_size=3)) == 7
