from __future__ import annotations

import json
from typing import Any

import pytest
from made_headers import entry, file_of, table_of

from stiefel.errors import InvalidInputError
from stiefel.specs import parse_spec
from stiefel.specs import plan as plan_module
from stiefel.specs.dtypes import BITS
from stiefel.specs.header import TensorTable
from stiefel.specs.plan import Plan, plan
from stiefel.specs.shards import read_index


def table(tensors: dict[str, tuple[str, list[int]]]) -> TensorTable:
    header, position = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = BITS[dtype] // 8
        for count in shape:
            size *= count
        header[name] = entry(shape, position, position + size, dtype)
        position += size
    return table_of(file_of(header, position))


MODEL = {
    "layer.0.weight": ("F32", [8, 8]),
    "layer.0.bias": ("F32", [8]),
    "layer.1.weight": ("BF16", [16, 4]),
    "conv.weight": ("F32", [8, 3, 3, 3]),
    "ids": ("I64", [1, 8]),
    "half.weight": ("F8_E4M3", [4, 4]),
    "nothing": ("F32", [0, 4]),
}


def planned(tensors: dict[str, Any] = MODEL, **spec: Any) -> Plan:
    data = {"method": "project.unitary", "input": "a", **spec}
    return plan(parse_spec(data), {"model.safetensors": table(tensors)})


def low_rank(tensors: dict[str, Any] = MODEL, **spec: Any) -> Plan:
    rule = {"rule": {"by": "rank", "value": 2}}
    return planned(tensors, method="factorize.low_rank", **{**rule, **spec})


def test_every_tensor_is_selected_or_skipped_with_its_reason() -> None:
    found = planned(exclude=["layer.1.*"])
    assert set(found.selected) == {"layer.0.weight", "conv.weight"}
    assert {name: item.skip.code for name, item in found.skipped.items()} == {
        "layer.0.bias": "not_a_matrix",
        "layer.1.weight": "excluded",
        "ids": "dtype",
        "half.weight": "dtype",
        "nothing": "empty",
    }


def test_kernels_are_seen_as_out_by_the_rest_or_skipped() -> None:
    item = planned(include=["conv.*"]).selected["conv.weight"]
    assert (item.rows, item.columns) == (8, 27)
    assert planned(kernels="skip").skipped["conv.weight"].skip.code == "not_a_matrix"


@pytest.mark.parametrize("shape", [[1, 1, 8], [1, 17, 48], [9, 1], [1, 1]])
def test_a_single_row_or_column_is_a_vector(shape: list[int]) -> None:
    """Class tokens and learned positions of vision transformers, under the default include."""
    found = planned(MODEL | {"embeddings": ("F32", shape)}).skipped["embeddings"]
    assert found.skip.code == "not_a_matrix"
    assert "single vector" in found.skip.reason


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"include": ["layer.*", "leyer.*"]}, "/include/1"),
        ({"exclude": ["nope"]}, "/exclude/0"),
    ],
)
def test_a_pattern_that_matches_nothing_is_refused(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        planned(**spec)
    assert caught.value.code == "pattern_matches_nothing"
    assert caught.value.field == field
    assert caught.value.fix is not None
    assert "Names look like" in caught.value.fix


def test_a_selection_without_matrices_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"layer\.0\.bias") as caught:
        planned(include=["*.bias"])
    assert caught.value.code == "nothing_selected"


def test_a_matrix_over_the_limit_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MAX_SIDE", 7)
    assert planned().skipped["layer.0.weight"].skip.code == "too_large"


def test_ranks_known_by_shape_meet_the_break_even_in_the_plan() -> None:
    found = low_rank(include=["layer.*.weight", "conv.*"])
    assert set(found.selected) == {"layer.0.weight", "conv.weight", "layer.1.weight"}
    found = low_rank(include=["layer.*.weight", "conv.*"], rule={"by": "rank", "value": 4})
    assert set(found.selected) == {"conv.weight"}
    assert found.skipped["layer.0.weight"].skip.code == "break_even"
    assert "4.0" in found.skipped["layer.0.weight"].skip.reason


def test_factors_are_named_and_shaped_by_their_source() -> None:
    found = low_rank({**MODEL, "in_proj_weight": ("F32", [12, 8])})
    shapes = {
        output.name: output.shape
        for item in found.selected.values()
        for output in item.treatment.outputs
    }
    assert shapes["layer.0.factor_out"] == (8, 2)
    assert shapes["layer.0.factor_in"] == (2, 8)
    assert shapes["conv.factor_out"] == (8, 2, 1, 1)
    assert shapes["conv.factor_in"] == (2, 3, 3, 3)
    assert shapes["in_proj_weight.factor_out"] == (12, 2)


def test_a_name_that_is_taken_is_refused() -> None:
    taken = {"a.weight": ("F32", [8, 8]), "a.factor_in": ("F32", [3])}
    with pytest.raises(InvalidInputError, match=r"a\.factor_in") as caught:
        low_rank(taken)
    assert caught.value.code == "name_collision"
    assert caught.value.tensor == "a.weight"


def test_two_sources_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        low_rank({"a.weight": ("F32", [8, 8]), "a": ("F32", [8, 8])})
    assert caught.value.code == "name_collision"


def test_sizes_are_estimated() -> None:
    found = low_rank({"a.weight": ("F32", [100, 100])}, rule={"by": "rank", "value": 10})
    assert found.output_bytes - found.input_bytes == 4 * (10 * 200 - 100 * 100)
    assert found.peak_memory_bytes > plan_module.BASE_MEMORY


def test_the_plan_is_json_and_can_be_cut() -> None:
    form = json.loads(json.dumps(planned().to_dict(limit=1)))
    assert len(form["selected"]) == 1
    assert form["selected_count"] == 3
    assert form["skipped"][0]["reason"]


SHARDS = {
    "a.safetensors": table({"x": ("F32", [2, 2])}),
    "b.safetensors": table({"y": ("F32", [2, 2])}),
}


@pytest.mark.parametrize(
    ("tables", "weight_map", "code"),
    [
        (SHARDS, {"x": "a.safetensors", "y": "c.safetensors"}, "shard_missing"),
        (SHARDS, {"x": "a.safetensors", "y": "a.safetensors"}, "tensor_missing"),
        (SHARDS, {"x": "a.safetensors", "z": "b.safetensors"}, "tensor_missing"),
        (SHARDS, {"x": "a.safetensors"}, "tensor_not_in_index"),
        ({**SHARDS, "c.safetensors": SHARDS["a.safetensors"]}, None, "tensor_in_two_shards"),
    ],
)
def test_shards_and_index_must_agree(
    tables: dict[str, TensorTable], weight_map: dict[str, str] | None, code: str
) -> None:
    spec = parse_spec({"method": "project.unitary", "input": dict.fromkeys(tables, "art")})
    with pytest.raises(InvalidInputError) as caught:
        plan(spec, tables, index=weight_map)
    assert caught.value.code == code
    assert caught.value.fix


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "index_not_json"),
        (b"[]", "index_invalid"),
        (b'{"weight_map":{"a":1}}', "index_invalid"),
    ],
)
def test_a_broken_index_is_refused(raw: bytes, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        read_index(raw)
    assert caught.value.code == code
