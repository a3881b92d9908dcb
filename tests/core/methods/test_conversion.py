"""What every conversion shares: files, shards, certificate, report, memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from converting import Job, low_rank, small_checkpoint, unitary
from safetensors import safe_open
from safetensors.torch import load_file

from stiefel.errors import InvalidInputError
from stiefel.weights import TensorReader


def test_every_byte_of_a_file_is_in_the_certificate(tmp_path: Path) -> None:
    result = unitary(tmp_path, small_checkpoint())
    certificate = result.json("certificate.json")
    assert certificate["format"] == "stiefel-certificate/1"
    path = result.folder / "model.safetensors"
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    file = certificate["files"]["model.safetensors"]
    assert file["bytes"] == len(content)
    assert file["header_sha256"] == hashlib.sha256(content[:length]).hexdigest()
    with TensorReader(path) as reader:
        rows = {row["name"]: row for row in certificate["tensors"]}
        assert rows.keys() == reader.table.tensors.keys()
        for name, info in reader.table.tensors.items():
            assert (
                rows[name]["sha256"] == hashlib.sha256(content[info.begin : info.end]).hexdigest()
            )
            assert rows[name]["shape"] == list(info.shape)
            assert rows[name]["role"] in ("projected", "unchanged")


def test_lineage_names_input_spec_seed_code_and_environment(tmp_path: Path) -> None:
    result = unitary(tmp_path, small_checkpoint(), seed=5)
    lineage = result.json("certificate.json")["lineage"]
    source = (tmp_path / "input" / "model.safetensors").read_bytes()
    assert lineage["input"] == {"model.safetensors": hashlib.sha256(source).hexdigest()}
    assert lineage["seed"] == 5
    assert lineage["spec"]["method"] == "project.unitary"
    assert lineage["environment"]["torch"] == torch.__version__
    assert lineage["code"]
    assert lineage["job"] is None


def test_every_tensor_is_aligned_to_its_element(tmp_path: Path) -> None:
    result = low_rank(tmp_path, small_checkpoint(), rule={"by": "rank", "value": 3})
    path = result.folder / "model.safetensors"
    with TensorReader(path) as reader:
        widths = [
            info.nbytes // max(1, torch.Size(info.shape).numel())
            for info in reader.table.tensors.values()
        ]
        assert all(
            info.begin % width == 0
            for info, width in zip(reader.table.tensors.values(), widths, strict=True)
            if width
        )


def test_metadata_is_kept(tmp_path: Path) -> None:
    result = unitary(tmp_path, small_checkpoint())
    with safe_open(result.folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_report_lists_converted_and_skipped_tensors(tmp_path: Path) -> None:
    report = unitary(tmp_path, small_checkpoint(), exclude=["tall*"]).json("report.json")
    assert {row["name"] for row in report["tensors"]} == {
        "square.weight",
        "wide.weight",
        "kernel.weight",
        "complex.weight",
        "half.weight",
        "double.weight",
    }
    assert {row["name"]: row["code"] for row in report["skipped"]} == {
        "tall.weight": "excluded",
        "square.bias": "not_a_matrix",
        "scalar": "not_a_matrix",
        "ids": "dtype",
        "flags": "dtype",
        "tiny.weight": "dtype",
        "empty": "empty",
    }
    assert report["totals"]["tensors_converted"] == 6
    row = report["tensors"][0]
    assert row["before"]["orthogonality_defect"] > row["after"]["orthogonality_defect"]


def test_spectra_and_figures_are_reported_while_it_runs(tmp_path: Path) -> None:
    job = Job(tmp_path, {"method": "project.unitary", "input": "a"}).stage(small_checkpoint())
    job.finish()
    spectra = {data["tensor"]: data for kind, data in job.run.events if kind == "job.spectrum"}
    assert spectra["square.weight"]["count"] == 24
    assert len(spectra["square.weight"]["sigma"]) == 24
    assert any("orthogonality_defect" in values for _, values in job.run.points)


def sharded(tmp_path: Path, method: str = "factorize.low_rank") -> Job:
    tensors = small_checkpoint()
    names = sorted(tensors)
    files = {"m-1.safetensors": names[::2], "m-2.safetensors": names[1::2]}
    spec = {
        "method": method,
        "input": {**dict.fromkeys(files, "art"), "m.safetensors.index.json": "art"},
        "rule": {"by": "rank", "value": 3},
    }
    job = Job(tmp_path, spec)
    for file, members in files.items():
        job.stage({name: tensors[name] for name in members}, file)
    weight_map = {name: file for file, members in files.items() for name in members}
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (job.input / "m.safetensors.index.json").write_text(json.dumps(index))
    return job


def test_a_sharded_checkpoint_keeps_its_shards_and_gets_a_new_index(tmp_path: Path) -> None:
    result = sharded(tmp_path).finish()
    index = result.json("m.safetensors.index.json")
    present = {
        name: file
        for file in ("m-1.safetensors", "m-2.safetensors")
        for name in load_file(result.folder / file)
    }
    assert index["weight_map"] == present
    assert "square.factor_out" in present
    total = sum(
        x.numel() * x.element_size()
        for file in ("m-1.safetensors", "m-2.safetensors")
        for x in load_file(result.folder / file).values()
    )
    assert index["metadata"]["total_size"] == total
    assert set(result.json("certificate.json")["files"]) == {"m-1.safetensors", "m-2.safetensors"}


def test_shards_that_contradict_their_index_are_refused(tmp_path: Path) -> None:
    job = sharded(tmp_path)
    path = job.input / "m.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["ghost"] = "m-1.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(InvalidInputError, match="ghost") as caught:
        job.finish()
    assert caught.value.code == "tensor_missing"


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    job = Job(tmp_path, {"method": "project.unitary", "input": "a"})
    job.input.mkdir()
    (job.input / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(1000))
    with pytest.raises(InvalidInputError) as caught:
        job.finish()
    assert caught.value.code == "torch_zip_file"
