from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from stiefel.errors import InvalidInputError, StiefelError
from stiefel.weights import BodyWriter, Ledger, TensorReader, header_bytes
from stiefel.weights import reader as reader_module
from stiefel.weights.dtypes import NAMES, TORCH


def sample(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(24).reshape(4, 6).to(dtype)


@pytest.mark.parametrize("name", TORCH)
def test_every_dtype_is_read_as_the_library_reads_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {"a": sample(TORCH[name]), "scalar": torch.tensor(1).to(TORCH[name])}
    save_file(tensors, path)
    with TensorReader(path) as reader:
        for key, info in reader.table.tensors.items():
            assert info.dtype == name
            assert torch.equal(reader.tensor(info), tensors[key])


def test_blocks_are_the_bytes_of_the_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "BLOCK", 10)
    path = tmp_path / "m.safetensors"
    save_file({"a": sample(torch.float32), "b": torch.empty(0)}, path)
    with TensorReader(path) as reader:
        blocks = [bytes(block) for block in reader.blocks(reader.table.tensors["a"])]
        assert b"".join(blocks) == sample(torch.float32).numpy().tobytes()
        assert max(map(len, blocks)) == 10
        assert list(reader.blocks(reader.table.tensors["b"])) == []


def test_a_file_cut_while_it_is_open_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": sample(torch.float32)}, path)
    with TensorReader(path) as reader:
        os.truncate(path, path.stat().st_size - 1)
        with pytest.raises(InvalidInputError) as caught:
            reader.tensor(reader.table.tensors["a"])
    assert caught.value.code == "file_truncated"


def test_header_and_body_make_a_file_that_the_library_loads(tmp_path: Path) -> None:
    tensors = {NAMES[d]: sample(d) for d in (torch.float64, torch.float32, torch.bfloat16)}
    with BodyWriter(tmp_path / "body", 0) as body:
        written = [body.tensor(name, name, x) for name, x in tensors.items()]
    header = header_bytes([entry.to_dict() for entry in written], {"format": "pt"})
    assert len(header) % 8 == 0
    loaded = load(header + (tmp_path / "body").read_bytes())
    assert all(torch.equal(loaded[name], x) for name, x in tensors.items())


@pytest.mark.parametrize(
    "x",
    [
        sample(torch.complex64).mH,
        sample(torch.float32).T,
        sample(torch.float32)[::2, 1::2],
        torch.tensor(2.5),
        torch.empty(0, 3),
    ],
    ids=["conjugate", "transpose", "strided", "scalar", "empty"],
)
def test_views_are_written_by_value(tmp_path: Path, x: torch.Tensor) -> None:
    with BodyWriter(tmp_path / "body", 0) as body:
        entry = body.tensor("x", NAMES[x.dtype], x).to_dict()
    loaded = load(header_bytes([entry], {}) + (tmp_path / "body").read_bytes())["x"]
    assert torch.equal(loaded, x)


def test_names_with_any_letters_survive(tmp_path: Path) -> None:
    name = 'Schicht "ä"\\1'
    with BodyWriter(tmp_path / "body", 0) as body:
        entry = body.tensor(name, "F32", sample(torch.float32)).to_dict()
    path = tmp_path / "m.safetensors"
    path.write_bytes(header_bytes([entry], {}) + (tmp_path / "body").read_bytes())
    assert list(load_file(path)) == [name]


def test_a_body_goes_on_where_the_ledger_ends(tmp_path: Path) -> None:
    path = tmp_path / "body"
    path.write_bytes(b"complete-torn")
    with BodyWriter(path, 8) as body:
        body.copy("x", "U8", (4,), [memoryview(b"more")])
    assert path.read_bytes() == b"completemore"


def test_a_body_that_lost_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "body").write_bytes(b"short")
    with pytest.raises(StiefelError, match="body") as caught:
        BodyWriter(tmp_path / "body", 8)
    assert caught.value.code == "state_damaged"


def entry(source: str, end: int) -> dict[str, object]:
    return {"file": "f", "source": source, "tensors": [{"end": end}]}


def test_a_ledger_remembers_and_cuts_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, "me") as ledger:
        ledger.add(entry("a", 4))
        ledger.add(entry("b", 9))
    with path.open("ab") as file:
        file.write(b'{"file": "f", "source": "c"')
    with Ledger(path, "me") as ledger:
        assert ledger.done == {"a", "b"}
        assert ledger.ends == {"f": 9}
        ledger.add(entry("c", 12))
        assert [item["source"] for item in ledger.entries()] == ["a", "b", "c"]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_ledger_of_other_work_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    Ledger(path, "me").__exit__(None, None, None)
    with pytest.raises(StiefelError) as caught:
        Ledger(path, "you")
    assert caught.value.code == "state_foreign"
