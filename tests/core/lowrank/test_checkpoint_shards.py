"""Factored checkpoints in shards: by their folder, by their index, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import load_factored
from stiefel.methods.local import run_local
from stiefel.specs.factorize_low_rank import FactorizeLowRankSpec

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def network(seed=1):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 16))


def write_index(folder, weight_map):
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


def spread(tensors, folder, names=SHARDS):
    """Save ``tensors`` in two shards, the factors of one layer in different ones."""
    weight_map = {name: names[k % 2] for k, name in enumerate(sorted(tensors))}
    for shard in names:
        part = {n: t.contiguous() for n, t in tensors.items() if weight_map[n] == shard}
        save_file(part, folder / shard)
    write_index(folder, weight_map)
    return weight_map


def factors():
    tensors = dict(network().state_dict())
    for stem in ("0", "2"):
        U, s, Vh = torch.linalg.svd(tensors.pop(f"{stem}.weight"), full_matrices=False)
        tensors[f"{stem}.factor_out"], tensors[f"{stem}.factor_in"] = U * s, Vh
    return tensors


@pytest.fixture
def folder(tmp_path):
    spread(factors(), tmp_path)
    return tmp_path


def refused(source, *, code="checkpoint_mismatch"):
    model = network(2)
    with pytest.raises(InvalidInputError) as caught:
        load_factored(model, source)
    assert caught.value.code == code
    assert [type(layer) for layer in model] == [nn.Linear, nn.Tanh, nn.Linear]
    return caught.value


@pytest.mark.parametrize("given", ["", INDEX])
@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_shards_load_by_their_folder_and_by_their_index(folder, given, kind):
    loaded = load_factored(network(2), kind(folder / given))
    assert loaded.factored == ("0", "2")
    x = torch.randn(3, 16)
    torch.testing.assert_close(loaded.model(x), network()(x), atol=1e-5, rtol=1e-4)


def test_the_result_of_a_sharded_conversion_loads(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    spread(network().state_dict(), source)
    spec = FactorizeLowRankSpec(
        input=dict.fromkeys((*SHARDS, INDEX), "art"), rule={"by": "rank", "value": 4}
    )
    run_local(spec, source, target)
    loaded = load_factored(network(2), target)
    assert loaded.factored == ("0", "2")
    U, s, Vh = torch.linalg.svd(network()[0].weight)
    torch.testing.assert_close(loaded.model[0].weight, (U[:, :4] * s[:4]) @ Vh[:4])


def test_a_folder_with_a_whole_file_needs_no_index(tmp_path):
    save_file({n: t.contiguous() for n, t in factors().items()}, tmp_path / "model.safetensors")
    assert load_factored(network(2), tmp_path).factored == ("0", "2")
    write_index(tmp_path, {"left": "over.safetensors"})
    assert load_factored(network(2), tmp_path).factored == ("0", "2")


def test_a_shard_may_be_called_as_a_whole_file_is(tmp_path):
    spread(factors(), tmp_path, ("model.safetensors", "more.safetensors"))
    assert load_factored(network(2), tmp_path).factored == ("0", "2")
    error = refused(tmp_path / "model.safetensors")
    assert "model.safetensors is one shard of several" in error.detail


@pytest.mark.parametrize("beside", [True, False])
def test_one_shard_is_refused_with_a_hint_at_the_whole(folder, beside):
    if not beside:
        (folder / INDEX).unlink()
    error = refused(folder / SHARDS[0])
    assert f"{SHARDS[0]} is one shard of several" in error.detail
    assert "folder of all shards" in error.fix
    assert ".safetensors.index.json" in error.fix


def test_a_whole_file_that_does_not_fit_is_no_shard(tmp_path):
    save_file({"0.bias": torch.zeros(24)}, tmp_path / "model.safetensors")
    assert "shard" not in refused(tmp_path / "model.safetensors").detail


def test_a_shard_that_is_not_there_is_named(folder):
    (folder / SHARDS[1]).unlink()
    assert SHARDS[1] in refused(folder).detail


@pytest.mark.parametrize("name", ["../over.safetensors", "..", "", "/etc/hosts", "a\0b"])
def test_an_index_names_no_file_outside_its_folder(folder, name):
    save_file({"0.bias": torch.zeros(24)}, folder.parent / "over.safetensors")
    write_index(folder, {"0.bias": name})
    assert "no plain file name" in refused(folder).detail


def test_shards_and_index_agree_on_every_tensor(folder):
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    write_index(folder, weight_map | {"other": SHARDS[0]})
    assert "'other'" in refused(folder).detail
    write_index(folder, {n: s for n, s in weight_map.items() if n != "2.bias"})
    assert "'2.bias'" in refused(folder).detail
    write_index(folder, weight_map | {"2.bias": SHARDS[0], "0.bias": SHARDS[1]})
    assert "does not place" in refused(folder).detail


def test_what_is_no_checkpoint_says_so(tmp_path):
    assert "holds neither" in refused(tmp_path, code="checkpoint_unreadable").detail
    for name in ("a", "b"):
        (tmp_path / f"{name}.{INDEX}").write_text("{}")
    error = refused(tmp_path, code="checkpoint_unreadable")
    assert f"a.{INDEX} and b.{INDEX}" in error.detail
    refused(tmp_path / f"a.{INDEX}", code="index_invalid")
    (tmp_path / "model.bin").write_bytes(b"PK\x03\x04" * 9)
    assert "model.bin" in refused(tmp_path / "model.bin", code="checkpoint_unreadable").detail
    with pytest.raises(FileNotFoundError):
        load_factored(network(), tmp_path / "none.safetensors")
