"""From grids to cells, without a service."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import pytest

from stiefel_api.grids import Part, expand
from stiefel_api.problems import Problem

SEEDS = list(range(256))


def specs(spec: dict[str, Any], grid: dict[str, list[Any]], most: int = 256) -> list[Any]:
    return [cell.spec for cell in expand([Part(spec, grid)], most=most)]


def test_cells_share_what_does_not_vary() -> None:
    spec = {"a": {"b": [1, {"c": 2}]}, "d": ["x"] * 1000}
    first, second = specs(spec, {"a.b.1.c": [3, 4]})
    assert (first["a"], second["a"]) == ({"b": [1, {"c": 3}]}, {"b": [1, {"c": 4}]})
    assert first["d"] is second["d"] is spec["d"]
    assert spec["a"] == {"b": [1, {"c": 2}]}


def test_a_field_varies_within_an_object_that_varies() -> None:
    objects = [{"name": "a"}, {"name": "b", "rate": 0}]
    grid = {"o.rate": [1, 2], "o": objects, "new.deep.field": [True]}
    found = specs({"o": None}, grid)
    assert [spec["o"] for spec in found] == [
        {"name": "a", "rate": 1},
        {"name": "b", "rate": 1},
        {"name": "a", "rate": 2},
        {"name": "b", "rate": 2},
    ]
    assert found[0]["new"] == {"deep": {"field": True}}
    assert objects == [{"name": "a"}, {"name": "b", "rate": 0}]


@pytest.mark.parametrize(
    ("spec", "grid"),
    [
        ({"include": [[] for _ in range(30_000)]}, {"seed": SEEDS}),
        ({"include": ["x" * 900_000]}, {"seed": SEEDS}),
        ({"x" * 900_000: 1}, {"seed": SEEDS}),
        ({}, {"include": [["x" * 900_000]], "seed": SEEDS}),
        ({}, {"include": [[[] for _ in range(30_000)]], "seed": SEEDS}),
    ],
)
def test_a_short_request_for_very_much_is_refused_at_once(
    spec: dict[str, Any], grid: dict[str, list[Any]]
) -> None:
    tracemalloc.start()
    began = time.monotonic()
    with pytest.raises(Problem) as refused:
        expand([Part(spec, grid)], most=256)
    assert time.monotonic() - began < 2
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
    assert (refused.value.status, refused.value.code) == (422, "batch_too_large")
    assert refused.value.errors[0]["pointer"] == "/grid"


def test_a_large_checkpoint_may_vary_in_every_cell() -> None:
    shards = {f"model-{n:05}-of-00200.safetensors": f"art_{n:026}" for n in range(200)}
    assert len(specs({"input": shards}, {"seed": SEEDS})) == 256


def test_more_cells_may_hold_more() -> None:
    spec = {"include": ["*"] * 500}
    assert len(specs(spec, {"seed": list(range(1000))}, most=1000)) == 1000
