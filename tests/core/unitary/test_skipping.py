"""A matrix whose gradient is not finite is left out of a step, with all that is kept of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stiefel.unitary import OrthogonalLinear, ProjUNN

RECIPES: list[dict[str, Any]] = [
    {},
    {"variant": "direct", "drift_columns": 3},
    {"momentum": 0.9},
    {"momentum": 0.9, "variant": "direct"},
    {"momentum": 0.9, "variant": "cayley", "drift_columns": 0},
    {"scaling": "rmsprop"},
    {"scaling": "rmsprop", "momentum": 0.9, "eps": 0.0},
    {"scaling": "adam"},
    {"scaling": "adam", "momentum": 0.9, "momentum_rank": 4},
]
KEPT = ("F", "K", "second_moment")


def optimizer_of(*parameters: nn.Parameter, **recipe: Any) -> ProjUNN:
    return ProjUNN(parameters, lr=0.01, rank=2, nonfinite="skip", **recipe)


def spoiled(gradient: Tensor, index: int) -> Tensor:
    gradient = gradient.clone()
    gradient[index, 0, 0] = torch.nan
    return gradient


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_a_matrix_left_out_keeps_its_place_and_its_state(
    draw: Any, dtype: torch.dtype, recipe: dict[str, Any]
) -> None:
    start = draw.frame(3, 9, 7, dtype=dtype)
    parameter = nn.Parameter(start.clone())
    optimizer = optimizer_of(parameter, **recipe)
    for _ in range(2):
        parameter.grad = draw.normal(3, 9, 7, dtype=dtype)
        optimizer.step()
    for _ in range(2):
        before, state = parameter.detach().clone(), copy.deepcopy(optimizer.state[parameter])
        parameter.grad = spoiled(draw.normal(3, 9, 7, dtype=dtype), 1)
        optimizer.step()
        assert torch.equal(parameter[1], before[1])
        assert not torch.equal(parameter[0], before[0])
        for name in KEPT:
            if name in state:
                old, new = state[name][1], optimizer.state[parameter][name][1]
                inside = tuple(slice(length) for length in old.shape)
                assert torch.equal(new[inside], old)
                assert float(new.abs().sum()) == pytest.approx(float(old.abs().sum()))
    assert optimizer.skipped_steps() == 2


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("when", [0, 2])
def test_steps_left_out_might_as_well_not_have_been(
    draw: Any, recipe: dict[str, Any], when: int
) -> None:
    """Also the very first one, after which there is nothing to keep yet."""
    start = draw.frame(1, 12, 8)
    gradients = [draw.normal(1, 12, 8) for _ in range(5)]
    # Drift control is out of the picture: its place in the cycle moves on in a step left out.
    options = recipe | {"drift_columns": 0, "approximation": "range", "rank": 8}
    results = []
    for disturbed in (False, True):
        parameter = nn.Parameter(start.clone())
        optimizer = ProjUNN([parameter], lr=0.01, nonfinite="skip", **options)
        for index, gradient in enumerate(gradients):
            if disturbed and index == when:
                parameter.grad = spoiled(gradient, 0)
                optimizer.step()
            parameter.grad = gradient.clone()
            optimizer.step()
        results.append(parameter.detach())
    assert torch.allclose(*results, atol=1e-10)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_where_all_is_finite_skipping_is_raising(draw: Any, recipe: dict[str, Any]) -> None:
    starts = [draw.frame(9, 7) for _ in range(2)]
    gradients = [[draw.normal(9, 7) for _ in range(2)] for _ in range(4)]
    results = []
    for nonfinite in ("raise", "skip"):
        parameters = [nn.Parameter(start.clone()) for start in starts]
        optimizer = ProjUNN(parameters, lr=0.01, rank=2, nonfinite=nonfinite, **recipe)
        for step in gradients:
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        results.append(torch.stack([p.detach() for p in parameters]))
    assert torch.equal(*results)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_factors_that_are_not_finite_are_left_out_too(draw: Any, recipe: dict[str, Any]) -> None:
    layer = OrthogonalLinear(32, 32, dtype=torch.float64, generator=draw.generator)
    optimizer = optimizer_of(layer.frame, **recipe)
    x = draw.normal(4, 32)
    spoil = x.clone()
    spoil[0, 0] = torch.inf
    for batch in (x, x, spoil, spoil[:2], x[:2]):
        before = layer.frame.detach().clone()
        optimizer.zero_grad()
        layer(batch).square().sum().backward()
        optimizer.step()
        assert torch.equal(layer.frame, before) == (not bool(batch.isfinite().all()))
        assert bool(layer.frame.isfinite().all())
    assert optimizer.skipped_steps() == 2


def test_a_resumed_run_remembers_what_was_left_out(draw: Any) -> None:
    recipe = {"scaling": "adam", "momentum": 0.9}
    gradients = [draw.normal(2, 8, 8) for _ in range(6)]
    gradients[1] = spoiled(gradients[1], 0)
    whole = nn.Parameter(draw.frame(2, 8, 8))
    optimizer = optimizer_of(whole, **recipe)
    for index, gradient in enumerate(gradients):
        if index == 3:
            saved, middle = copy.deepcopy(optimizer.state_dict()), whole.detach().clone()
        whole.grad = gradient
        optimizer.step()
    second = nn.Parameter(middle)
    resumed = optimizer_of(second)
    resumed.load_state_dict(saved)
    for gradient in gradients[3:]:
        second.grad = gradient
        resumed.step()
    assert torch.equal(second, whole)
    assert resumed.skipped_steps() == 1


def test_a_count_saved_for_all_matrices_together_is_taken_up(draw: Any) -> None:
    parameter = nn.Parameter(draw.frame(3, 8, 8))
    optimizer = optimizer_of(parameter, scaling="adam")
    parameter.grad = draw.normal(3, 8, 8)
    optimizer.step()
    optimizer.state[parameter]["skipped"] = torch.tensor(2)
    parameter.grad = spoiled(parameter.grad, 2)
    optimizer.step()
    assert optimizer.skipped_steps() == 3
    assert bool(parameter.isfinite().all())
