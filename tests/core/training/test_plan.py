"""The plan, made by arithmetic, against the network that torch builds and the method converts."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.methods.train_dlrt import DynamicalLowRank
from stiefel.methods.train_oialr import OrthogonalityInformed
from stiefel.models import build_network
from stiefel.specs import parse_spec
from stiefel.specs.data_facts import Source
from stiefel.specs.families import layer_table
from stiefel.specs.signature import Signature
from stiefel.specs.training_plan import TrainingPlan, plan_training
from stiefel.training.unitary import frames, swap_layers

COPYING = {"kind": "copying_memory", "delay": 5, "length": 2, "symbols": 3}
IMAGE, GREY = (3, 32, 32), (1, 28, 28)

FAMILIES: list[tuple[dict[str, Any], tuple[int, ...] | None]] = [
    ({"family": "mlp", "hidden": [24, 16, 12], "normalisation": "batch", "dropout": 0.1}, GREY),
    ({"family": "mlp", "hidden": [24, 16], "normalisation": "layer", "activation": "gelu"}, (9,)),
    ({"family": "lenet5"}, GREY),
    ({"family": "lenet5"}, (16, 16)),
    ({"family": "vgg16", "width": 8, "hidden": 16}, IMAGE),
    ({"family": "alexnet", "hidden": 32}, IMAGE),
    ({"family": "alexnet", "hidden": 32, "dropout": 0.0}, (3, 33, 47)),
    ({"family": "resnet20", "width": 4}, (3, 17, 15)),
    ({"family": "vit", "depth": 2, "heads": 2, "width": 16, "hidden": 32}, IMAGE),
    ({"family": "rnn", "hidden": 12}, None),
    ({"family": "rnn", "hidden": 12, "numbers": "complex"}, None),
    ({"family": "rnn", "hidden": 12, "activation": "tanh"}, None),
    ({"family": "orthogonal_cnn", "channels": [4, 6, 6, 8]}, (3, 8, 8)),
    ({"family": "orthogonal_cnn", "channels": [4, 6]}, (1, 7, 2)),
]
METHODS: list[dict[str, Any]] = [
    {"method": "train.dlrt"},
    {"method": "train.dlrt", "initial_rank": 6},
    {"method": "train.oialr", "keep_last": False},
    {"method": "train.projunn"},
    {"method": "train.projunn", "include": ["*"], "exclude": ["head"]},
]


def npz(shape: tuple[int, ...], rows: int = 40, classes: int = 7) -> Source:
    buffer = io.BytesIO()
    np.savez(buffer, x=np.zeros((rows, *shape), np.float32), y=np.arange(rows) % classes)
    content = buffer.getvalue()
    return Source(lambda start, length: content[start : start + length], len(content))


def planned(
    network: dict[str, Any], shape: tuple[int, ...] | None, **more: Any
) -> tuple[Any, TrainingPlan]:
    arrays = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y"}
    spec = parse_spec({"network": network, "data": arrays if shape else COPYING} | more)
    return spec, plan_training(spec, {"train": npz(shape)} if shape else {})


def signature(shape: tuple[int, ...] | None) -> Signature:
    if shape is None:
        return Signature("sequence", (9, 5), 4, per_step=True)
    if len(shape) == 1:
        return Signature("vector", shape, 7)
    return Signature("image", shape if len(shape) == 3 else (1, *shape), 7)


@pytest.mark.parametrize(("network", "shape"), FAMILIES, ids=lambda case: str(case)[:50])
def test_the_table_is_the_network(network: dict[str, Any], shape: tuple[int, ...] | None) -> None:
    spec, plan = planned(network, shape, method="train.dense")
    built = build_network(spec.network, signature(shape), seed=0)
    table = layer_table(spec.network, signature(shape))
    assert table is not None
    stored: dict[str, tuple[int, ...]] = {}
    for layer in table:
        stored |= layer.stored()
    assert list(stored.items()) == [(n, tuple(v.shape)) for n, v in built.state_dict().items()]
    numbers = sum(p.numel() * p.element_size() for p in built.parameters())
    assert sum(layer.nbytes for layer in table) == numbers
    assert plan.parameters == sum(p.numel() for p in built.parameters())
    kinds = {layer.name: layer.kind for layer in table}
    assert kinds == {n: type(built.get_submodule(n)).__name__ for n in kinds}
    assert plan.layers is not None
    assert all(item.reason == "train.dense constrains no layer" for item in plan.layers)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize(("network", "shape"), FAMILIES, ids=lambda case: str(case)[:50])
def test_the_plan_constrains_what_the_method_does(
    network: dict[str, Any], shape: tuple[int, ...] | None, method: dict[str, Any]
) -> None:
    try:
        spec, plan = planned(network, shape, **method)
    except InvalidInputError as refusal:
        code = refusal.code
        spec = parse_spec({"network": network, "data": COPYING} | method)
        plan = None
    built = build_network(spec.network, signature(shape), seed=0)
    if plan is None:
        with pytest.raises(InvalidInputError) as caught:
            constrain(built, spec)
        assert caught.value.code == code == "nothing_converted"
        return
    before = {name: p.numel() for name, p in built.named_parameters()}
    done, left = constrain(built, spec)
    assert plan.layers is not None
    assert {item.layer.name: item.rank for item in plan.layers if item.constraint} == done
    assert {item.layer.name: item.reason for item in plan.layers if item.reason} == left
    weights = [f"{name}.weight" for name in done]
    framed = [n for n in before if n.rpartition(".")[2].startswith("frame")]
    expected = sum(before.get(name, 0) for name in weights)
    if spec.method == "train.projunn":
        expected += sum(before[name] for name in framed)
    assert plan.parameters_constrained == expected


def test_ranks_are_unknown_before_a_warm_up() -> None:
    network = {"family": "mlp", "hidden": [24, 16, 12]}
    spec, plan = planned(network, GREY, method="train.dlrt", warm_up={})
    done, left = constrain(build_network(spec.network, signature(GREY), seed=0), spec)
    assert plan.layers is not None
    assert {item.layer.name: item.rank for item in plan.layers if item.constraint} == done
    assert {item.layer.name: item.reason for item in plan.layers if item.reason} == left
    assert plan.parameters_at_start == plan.parameters


def constrain(built: nn.Module, spec: Any) -> tuple[dict[str, int | None], dict[str, str]]:
    """Layer -> rank of what the method constrains, layer -> reason of what it leaves."""
    if spec.method == "train.projunn":
        report = swap_layers(built, spec)
        left = {item.name: item.reason for item in report.skipped}
        own = {name for name in left if left[name].startswith("no orthogonal counterpart")}
        kept = {name: reason for name, reason in left.items() if name not in own}
        return {name.rpartition(".")[0]: None for name in frames(built)}, kept
    method: Any = DynamicalLowRank() if spec.method == "train.dlrt" else OrthogonalityInformed()
    method.attach(built, spec, steps=10)
    rows = method.layers(built)
    ranked = {row["name"]: row["rank"] for row in rows if "rank" in row}
    left = {row["name"]: row["skipped"] for row in rows if "skipped" in row}
    if spec.method == "train.oialr" or spec.warm_up is not None:  # ranks come later
        return dict.fromkeys(ranked), left
    return ranked, left


def test_numbers_at_the_start_are_those_of_the_factors() -> None:
    spec, plan = planned({"family": "mlp", "hidden": [64, 64]}, (64,), method="train.dlrt")
    built = build_network(spec.network, signature((64,)), seed=0)
    DynamicalLowRank().attach(built, spec, steps=10)
    counts = sum(
        module.parameter_count() if hasattr(module, "parameter_count") else 0
        for module in built.modules()
    ) + sum(p.numel() for p in built.get_submodule("head").parameters())
    assert plan.parameters_at_start == counts
    assert plan.parameters is not None
    assert plan.parameters_at_start < plan.parameters


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"batch_size": 1}, "/batch_size"),
        ({"batch_size": 4, "accumulate": 4}, "/batch_size"),
        ({"batch_size": 5, "accumulate": 2, "devices": 2}, "/batch_size"),
        ({"batch_size": 64, "devices": 37}, "/devices"),
    ],
)
def test_a_batch_too_small_for_its_slices_is_refused(changes: dict[str, Any], field: str) -> None:
    network = {"family": "mlp", "hidden": [8], "normalisation": "batch"}
    with pytest.raises(InvalidInputError) as caught:
        planned(network, (9,), method="train.dense", **changes)
    assert (caught.value.code, caught.value.field) == ("batch_too_small", field)
    if field == "/batch_size":
        planned(network | {"normalisation": "layer"}, (9,), method="train.dense", **changes)


def test_a_perceptron_takes_no_answers_at_every_step() -> None:
    with pytest.raises(InvalidInputError) as caught:
        planned({"family": "mlp", "hidden": [8]}, None, method="train.dense")
    assert (caught.value.code, caught.value.field) == ("network_does_not_fit", "/network/family")


DENSE = {"method": "train.dense", "network": {"family": "mlp", "hidden": [8]}}
ARRAYS = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y"}


@pytest.mark.parametrize(
    ("rows", "changes", "field"),
    [
        (5, {}, "/data/held_out"),
        (40, {"augment": "shift"}, "/data/augment"),
        (40, {"label": "x"}, "/data/label"),
    ],
)
def test_data_that_cannot_be_used_are_refused_by_the_plan(
    rows: int, changes: dict[str, Any], field: str
) -> None:
    spec = parse_spec(DENSE | {"data": ARRAYS | changes})
    with pytest.raises(InvalidInputError) as caught:
        plan_training(spec, {"train": npz((9,), rows=rows)})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_a_text_too_short_to_test_on_is_refused_by_the_plan() -> None:
    data = {"kind": "text", "train": "art_1", "context": 100}
    spec = parse_spec(DENSE | {"data": data})
    with pytest.raises(InvalidInputError, match="15 bytes hold no window") as caught:
        plan_training(spec, {"train": Source(lambda start, length: bytes(length), 150)})  # type: ignore[arg-type]
    assert caught.value.field == "/data/test"
