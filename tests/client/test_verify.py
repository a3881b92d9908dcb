from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from certified_files import Certified, certify
from safetensors.numpy import load_file, save_file

from stiefel_client.errors import UnreadableFileError
from stiefel_client.tensorfile import TensorFile
from stiefel_client.verify import measures, verify


def codes(outcome):
    return {finding.code for finding in outcome.findings}


def test_an_untouched_file_is_verified_without_its_input(certified: Certified) -> None:
    outcome = verify(certified.file)
    assert outcome.ok, outcome.findings
    assert outcome.bytes_read == certified.file.stat().st_size
    by_name = {check.name: check for check in outcome.tensors}
    assert [c.name for c in by_name["kernel.weight"].claims] == ["orthogonality_defect"]
    assert by_name["merged.weight"].claims[0].measured == 3


def test_with_its_input_every_distance_is_recomputed(certified: Certified) -> None:
    outcome = verify(certified.file, original=certified.original)
    assert outcome.ok, outcome.findings
    names = {c.name for check in outcome.tensors for c in check.claims}
    assert names == {
        "orthogonality_defect",
        "distance_to_input",
        "distance_to_optimum",
        "optimum_distance_to_input",
        "rank",
        "retained_energy",
        "relative_error",
        "optimal_error",
    }


@pytest.mark.parametrize(
    ("tensor", "claim", "value", "needs_input"),
    [
        ("square.weight", "orthogonality_defect", 1e-3, False),
        ("wide.weight", "orthogonality_defect", float("nan"), False),
        ("merged.weight", "rank", 2, False),
        ("dense.weight.left", "rank", 2, False),
        ("kernel.weight", "distance_to_input", 0.1, True),
        ("square.weight", "optimum_distance_to_input", 0.1, True),
        ("dense.weight.right", "relative_error", 1e-3, True),
        ("merged.weight", "retained_energy", 0.999, True),
    ],
)
def test_a_false_claim_is_found(certified, tensor, claim, value, needs_input) -> None:
    def lie(body):
        row = next(row for row in body["tensors"] if row["name"] == tensor)
        row["claims"][claim] = value

    certified.rewrite(lie)
    outcome = verify(certified.file, original=certified.original if needs_input else None)
    assert codes(outcome) == {"claim_fails"}
    assert {finding.where for finding in outcome.findings} == {tensor}


def test_another_input_is_found(certified: Certified) -> None:
    tensors = load_file(certified.original)
    tensors["norm.bias"] = tensors["norm.bias"] + 1
    save_file(tensors, certified.original)
    found = codes(verify(certified.file, original=certified.original))
    assert found == {"input_differs", "not_unchanged"}


def test_missing_and_foreign_tensors_are_found(certified: Certified) -> None:
    tensors = load_file(certified.file)
    tensors["smuggled"] = tensors.pop("square.weight")
    save_file(tensors, certified.file)
    found = codes(verify(certified.file))
    assert {"header_differs", "tensor_missing", "tensor_uncertified"} <= found


def test_truncation_and_appended_bytes_are_found(certified: Certified) -> None:
    data = certified.file.read_bytes()
    for damaged in (data[:-1], data + b"\0", data[:20], data[:5], b""):
        certified.file.write_bytes(damaged)
        assert not verify(certified.file).ok


def test_a_renamed_file_and_its_folder_verify_alike(certified: Certified) -> None:
    folder = certified.file.parent
    assert verify(folder).ok
    renamed = certified.file.rename(folder / "other.safetensors")
    assert verify(renamed, certificate=certified.certificate).ok
    assert codes(verify(folder)) == {"unreadable"}


def test_a_bad_certificate_is_named(certified: Certified, tmp_path: Path) -> None:
    certified.rewrite(lambda body: body.update(format="other/9"))
    with pytest.raises(UnreadableFileError, match="other/9"):
        verify(certified.file)
    certified.rewrite(lambda body: body.update(format="stiefel-certificate/1", files=[]))
    with pytest.raises(UnreadableFileError, match="/files"):
        verify(certified.file)
    with pytest.raises(UnreadableFileError, match="No such file"):
        verify(certified.file, certificate=tmp_path / "absent.json")


def test_every_single_bit_of_the_header_counts(certified: Certified) -> None:
    data = certified.file.read_bytes()
    length = 8 + int.from_bytes(data[:8], "little")
    for bit in range(0, 8 * length, 7):
        assert_flip_is_found(certified, data, bit)


def test_random_flips_anywhere_are_found(certified: Certified) -> None:
    data = certified.file.read_bytes()
    for bit in np.random.default_rng(1).integers(0, 8 * len(data), 500).tolist():
        assert_flip_is_found(certified, data, bit)


def assert_flip_is_found(certified: Certified, data: bytes, bit: int) -> None:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    certified.file.write_bytes(damaged)
    assert not verify(certified.file).ok, f"bit {bit} of {8 * len(data)}"


@pytest.mark.parametrize("shape", [(40, 7), (7, 40), (16, 16)])
def test_blocks_give_the_whole_matrix(tmp_path, shape) -> None:
    values = np.random.default_rng(0).standard_normal(shape)
    save_file({"w": values}, tmp_path / "w.safetensors")
    thin = values if shape[0] >= shape[1] else values.T
    with TensorFile(tmp_path / "w.safetensors") as file:
        entry = file.tensors["w"]
        np.testing.assert_allclose(measures.gram(file, entry), thin.T @ thin, rtol=1e-12)
        small = list(measures.tall_blocks(file, entry, numbers=3 * min(shape)))
        assert len(small) > 4
        np.testing.assert_array_equal(np.vstack(small), thin)
        assert measures.factor_rank(file, entry) == min(shape)
        assert measures.product_rank(file, entry) == min(shape)


def test_the_rank_sees_past_the_gram_matrix_in_float64(tmp_path) -> None:
    """Two singular values 1e-10 apart in scale: their squares would drown in float64."""
    values = np.diag([1.0, 1e-10, 1e-12, 0.0])
    save_file({"w": values}, tmp_path / "w.safetensors")
    with TensorFile(tmp_path / "w.safetensors") as file:
        assert measures.product_rank(file, file.tensors["w"]) == 3
        assert measures.factor_rank(file, file.tensors["w"]) == 3


def test_bfloat16_and_complex_are_decoded_by_hand(tmp_path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    generator = torch.Generator().manual_seed(0)
    half = torch.randn(5, 3, generator=generator).bfloat16()
    pair = torch.randn(4, 2, generator=generator, dtype=torch.complex64)
    save_torch({"b": half, "c": pair}, tmp_path / "w.safetensors")
    with TensorFile(tmp_path / "w.safetensors") as file:
        np.testing.assert_array_equal(file.rows(file.tensors["b"], 0, 5), half.double().numpy())
        columns = file.columns(file.tensors["c"], 1, 2)
        np.testing.assert_array_equal(columns, pair[:, 1:].to(torch.complex128).numpy())
        gram = measures.gram(file, file.tensors["c"])
        np.testing.assert_allclose(gram, (pair.mH @ pair).numpy(), rtol=1e-5)


def test_a_rank_deficient_source_has_no_single_optimum(certified: Certified) -> None:
    tensors = load_file(certified.original)
    tensors["square.weight"][:, 0] = 0
    optimum = measures.nearest_orthonormal(tensors["square.weight"].astype(np.float64))
    assert not optimum.unique


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"[]", "not a JSON object"),
        (b"{", "not JSON"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', "do not fit"),
        (b'{"a":{"dtype":"F99","shape":[1],"data_offsets":[0,4]}}', "malformed"),
        (b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', "not negative"),
        (b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}', "starts at"),
        (b'{"__metadata__":1}', "__metadata__"),
        (b'{"a":1,"a":2}', "twice"),
    ],
)
def test_a_malformed_file_is_refused_by_name(tmp_path, header, message) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(UnreadableFileError, match=message) as caught:
        TensorFile(path)
    assert str(path) in caught.value.detail


def test_a_header_bomb_is_not_read(tmp_path) -> None:
    path = tmp_path / "bomb.safetensors"
    path.write_bytes((2**40).to_bytes(8, "little"))
    with pytest.raises(UnreadableFileError, match="limit"):
        TensorFile(path)


def test_the_outcome_is_json(certified: Certified) -> None:
    assert json.loads(json.dumps(verify(certified.file).to_json()))["ok"] is True


def test_memory_is_a_few_blocks_whatever_the_size(tmp_path) -> None:
    file = tmp_path / "large.safetensors"
    values = {f"w{i}": np.zeros((1024, 1024 * 16), np.float32) for i in range(3)}
    save_file(values, file)
    rows = {name: ("projected", name, {"orthogonality_defect": 32.0}) for name in values}
    certificate = tmp_path / "certificate.json"
    certificate.write_text(json.dumps(certify(file, rows, {})))
    del values
    tracemalloc.start()
    try:
        outcome = verify(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert outcome.ok, outcome.findings
    assert file.stat().st_size > 200e6
    assert peak < 140e6, f"{peak / 1e6:.0f} MB"
