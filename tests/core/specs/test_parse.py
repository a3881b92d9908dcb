from __future__ import annotations

from typing import Any, Literal

import pytest

from stiefel.specs import SPECS, InvalidSpecError, MethodSpec, parse_spec

UNITARY = {"method": "project.unitary", "input": "art_1"}
DENSE = {
    "method": "train.dense",
    "network": {"family": "mlp"},
    "data": {"kind": "adding_problem"},
}
ARRAYS = {"kind": "arrays", "train": "art_1", "input": "x"}
LOW_RANK = {"method": "factorize.low_rank", "input": "art_1", "rule": {"by": "rank", "value": 4}}


def refused(data: Any) -> InvalidSpecError:
    with pytest.raises(InvalidSpecError) as caught:
        parse_spec(data)
    assert caught.value.problems
    return caught.value


@pytest.mark.parametrize(
    ("data", "code", "field"),
    [
        ([], "invalid_spec", ""),
        ({}, "method_missing", "/method"),
        ({"method": "no.such"}, "unknown_method", "/method"),
        ({"method": 3}, "unknown_method", "/method"),
        ({**UNITARY, "colour": 1}, "invalid_spec", "/colour"),
        ({"method": "project.unitary"}, "invalid_spec", "/input"),
        ({**UNITARY, "input": "../etc/passwd"}, "invalid_spec", "/input"),
        ({**UNITARY, "input": "art_1\n"}, "invalid_spec", "/input"),
        ({**UNITARY, "input": {"../m.safetensors": "a"}}, "invalid_spec", "/input"),
        ({**UNITARY, "input": {"m.bin": "a"}}, "invalid_spec", "/input"),
        ({**UNITARY, "input": {}}, "invalid_spec", "/input"),
        ({**UNITARY, "include": []}, "invalid_spec", "/include"),
        ({**UNITARY, "include": [""]}, "invalid_spec", "/include/0"),
        ({**UNITARY, "include": ["a"] * 65}, "invalid_spec", "/include"),
        ({**UNITARY, "determinant": -1}, "invalid_spec", "/determinant"),
        ({**UNITARY, "seed": -1}, "invalid_spec", "/seed"),
        ({**LOW_RANK, "rule": {"by": "rank"}}, "invalid_spec", "/rule/value"),
        ({**LOW_RANK, "rule": {"by": "magic"}}, "invalid_spec", "/rule"),
        ({**LOW_RANK, "rule": {"by": "energy", "value": 1.5}}, "invalid_spec", "/rule/value"),
        (
            {**LOW_RANK, "rule": {"by": "energy", "value": float("nan")}},
            "invalid_spec",
            "/rule/value",
        ),
        ({**LOW_RANK, "rule": {"by": "rank", "value": 4, "x": 1}}, "invalid_spec", "/rule/x"),
        ({**LOW_RANK, "min_rank": 9, "max_rank": 3}, "invalid_spec", ""),
        ({**DENSE, "optimizer": {"name": "adam", "momentum": 0.5}}, "invalid_spec", "/optimizer"),
        ({**DENSE, "optimizer": {"subspace": {"rank": 3}}}, "invalid_spec", "/optimizer"),
        ({**DENSE, "data": {**ARRAYS, "permute": 1}}, "invalid_spec", "/data"),
        ({**DENSE, "data": {**ARRAYS, "input": ["a", "a"]}}, "invalid_spec", "/data"),
        (
            {**LOW_RANK, "engine": "randomised", "rule": {"by": "energy", "value": 0.5}},
            "invalid_spec",
            "",
        ),
    ],
)
def test_a_bad_spec_is_refused_with_the_pointer_to_its_fault(
    data: Any, code: str, field: str
) -> None:
    error = refused(data)
    assert error.code == code
    assert error.field is not None
    assert error.field.startswith(field)
    assert error.fix


def test_every_fault_is_listed() -> None:
    error = refused({**UNITARY, "seed": "x", "scale": "big", "colour": 1})
    assert {problem["field"] for problem in error.problems} == {"/seed", "/scale", "/colour"}


def test_inputs_name_the_staged_files() -> None:
    assert parse_spec(UNITARY).inputs() == {"model.safetensors": "art_1"}
    shards = {"a.safetensors": "art_1", "model.safetensors.index.json": "art_2"}
    spec = parse_spec({**UNITARY, "input": shards})
    assert spec.inputs() == shards


def test_a_spec_defined_elsewhere_joins_by_subclassing() -> None:
    class Extra(MethodSpec):
        method: Literal["test.extra"] = "test.extra"

    try:
        assert isinstance(parse_spec({"method": "test.extra"}), Extra)
    finally:
        del SPECS["test.extra"]


@pytest.mark.parametrize("data", [UNITARY, LOW_RANK])
def test_a_spec_survives_its_own_json(data: dict[str, Any]) -> None:
    spec = parse_spec(data)
    assert parse_spec(spec.model_dump(mode="json")) == spec
