from __future__ import annotations

import copy
import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stiefel.errors import InvalidInputError
from stiefel.unitary import (
    OrthogonalLinear,
    ProjUNN,
    euclidean_parameters,
    manifold_parameters,
    rank_k_update,
)

RECIPES: list[dict[str, Any]] = [
    {"lr": 0.05},
    {"lr": 0.05, "variant": "direct"},
    {"lr": 0.05, "variant": "cayley", "approximation": "lsi"},
    {"lr": 0.05, "rank": 4, "approximation": "columns"},
    {"lr": 0.01, "momentum": 0.9, "rank": 2},
    {"lr": 0.01, "momentum": 0.9, "rank": 2, "variant": "direct"},
    {"lr": 0.004, "scaling": "rmsprop"},
    {"lr": 0.004, "scaling": "adam", "momentum": 0.9},
]


def closed_path(draw: Any, dtype: torch.dtype, n: int = 8) -> Tensor:
    """A target a moderate rotation away from the identity."""
    A = draw.normal(n, n, dtype=dtype)
    return torch.linalg.matrix_exp((A - A.mH) * 0.15)


def pull(parameters: list[nn.Parameter], targets: list[Tensor]) -> Tensor:
    pairs = zip(parameters, targets, strict=True)
    return torch.stack([(p - t).abs().square().sum() for p, t in pairs]).sum()


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_it_descends_and_stays_on_the_manifold(
    draw: Any, defect: Any, recipe: dict[str, Any], dtype: torch.dtype
) -> None:
    targets = [closed_path(draw, dtype) for _ in range(2)]
    parameters = [nn.Parameter(torch.eye(8, dtype=dtype)) for _ in range(2)]
    optimizer = ProjUNN(parameters, **recipe)
    first = float(pull(parameters, targets).detach())
    for _ in range(120):
        optimizer.zero_grad()
        loss = pull(parameters, targets)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    for parameter in parameters:
        assert defect(parameter.detach()) < 2e-5
        assert float(optimizer.defects()[parameter]) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_small_matrices_stepped_together_move_as_if_alone(draw: Any, dtype: torch.dtype) -> None:
    starts = [draw.frame(9, 9, dtype=dtype) for _ in range(3)]
    G = [draw.normal(9, 9, dtype=dtype) for _ in range(3)]
    recipe: dict[str, Any] = {"lr": 0.002, "rank": 9, "scaling": "rmsprop", "momentum": 0.5}

    def moved(indices: list[int]) -> list[Tensor]:
        parameters = [nn.Parameter(starts[i].clone()) for i in indices]
        optimizer = ProjUNN(parameters, **recipe)
        for _ in range(3):
            for p, i in zip(parameters, indices, strict=True):
                p.grad = G[i].clone()
            optimizer.step()
        return [p.detach() for p in parameters]

    together = moved([0, 1, 2])
    for i in range(3):
        assert torch.allclose(together[i], moved([i])[0], atol=1e-5)


def test_one_sgd_step_is_the_rank_k_update_of_the_gradient(draw: Any) -> None:
    W, G = draw.frame(10, 10), draw.normal(10, 10)
    parameter = nn.Parameter(W.clone())
    parameter.grad = G
    ProjUNN([parameter], lr=0.1, rank=10, drift_columns=0).step()
    expected = rank_k_update(W, -0.1 * G, torch.eye(10, dtype=W.dtype))
    assert torch.allclose(parameter.detach(), expected, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_resumed_run_is_the_same_run(draw: Any, recipe: dict[str, Any]) -> None:
    target = closed_path(draw, torch.float32)

    def steps(parameter: nn.Parameter, optimizer: ProjUNN, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            pull([parameter], [target]).backward()
            optimizer.step()

    whole = nn.Parameter(torch.eye(8))
    steps(whole, ProjUNN([whole], **recipe), 8)
    first = nn.Parameter(torch.eye(8))
    optimizer = ProjUNN([first], **recipe)
    steps(first, optimizer, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    second = nn.Parameter(first.detach().clone())
    resumed = ProjUNN([second], lr=99.0)
    resumed.load_state_dict(saved)
    steps(second, resumed, 3)
    assert torch.equal(second, whole)


def layer_and_batch(draw: Any, n: int = 32, rows: int = 4) -> tuple[OrthogonalLinear, Tensor]:
    layer = OrthogonalLinear(n, n, dtype=torch.float64, generator=draw.generator)
    return layer, draw.normal(rows, n)


def test_factors_move_a_layer_as_its_dense_gradient_does(draw: Any) -> None:
    layer, x = layer_and_batch(draw)
    twin = copy.deepcopy(layer)
    optimizer = ProjUNN([layer.frame], lr=0.1)
    dense = ProjUNN([twin.frame], lr=0.1, rank=32, factored=False)
    for _ in range(3):
        for model, stepper in ((layer, optimizer), (twin, dense)):
            stepper.zero_grad()
            model(x).square().sin().sum().backward()
            assert (model.frame.grad is None) == (model is layer)
            stepper.step()
    assert torch.allclose(layer.frame, twin.frame, atol=1e-11)


def test_factors_accumulate_over_backward_passes(draw: Any) -> None:
    layer, x = layer_and_batch(draw)
    twin = copy.deepcopy(layer)
    optimizer = ProjUNN([layer.frame], lr=0.1)
    dense = ProjUNN([twin.frame], lr=0.1, rank=32, factored=False)
    for model in (layer, twin):
        for part in (x[:2], x[2:]):
            model(part).exp().sum().backward()
    optimizer.step()
    dense.step()
    assert torch.allclose(layer.frame, twin.frame, atol=1e-11)
    before = layer.frame.detach().clone()
    layer(x).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(layer.frame, before)


def test_clipping_sees_dense_gradients_and_factors_alike(draw: Any) -> None:
    layer, x = layer_and_batch(draw)
    twin = copy.deepcopy(layer)
    optimizer = ProjUNN([layer.frame], lr=0.1)
    dense = ProjUNN([twin.frame], lr=0.1, rank=32, factored=False)
    for model in (layer, twin):
        model(x).exp().sum().backward()
    norm = optimizer.clip_grad_norm_(0.5)
    expected = nn.utils.clip_grad_norm_([twin.frame], 0.5)
    assert float(norm) == pytest.approx(float(expected), rel=1e-9)
    optimizer.step()
    dense.step()
    assert torch.allclose(layer.frame, twin.frame, atol=1e-9)


def test_a_scheduler_drives_the_learning_rate(draw: Any) -> None:
    parameter = nn.Parameter(draw.frame(6, 6))
    optimizer = ProjUNN([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.0)
    parameter.grad = draw.normal(6, 6)
    optimizer.step()
    scheduler.step()
    before = parameter.detach().clone()
    optimizer.param_groups[0]["drift_columns"] = 0
    optimizer.step()
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("factored", [True, False])
def test_grad_scaler_scales_nothing_in_the_end(draw: Any, factored: bool) -> None:
    layer, x = layer_and_batch(draw)
    twin = copy.deepcopy(layer)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    bias = torch.optim.SGD([layer.bias], lr=0.0)
    optimizer = ProjUNN([layer.frame], lr=0.1, rank=32, factored=factored)
    plain = ProjUNN([twin.frame], lr=0.1, rank=32, factored=factored)
    scaler.scale(layer(x).exp().sum()).backward()
    scaler.step(bias)
    scaler.step(optimizer)
    scaler.update()
    twin(x).exp().sum().backward()
    plain.step()
    assert torch.allclose(layer.frame, twin.frame, atol=1e-9)


def test_a_scaler_that_overflowed_leaves_the_step_out(draw: Any) -> None:
    layer, x = layer_and_batch(draw)
    before = layer.frame.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=1e30)
    optimizer = ProjUNN([layer.frame], lr=0.1, factored=False)
    scaler.scale((layer(x) * 1e300).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(layer.frame, before)
    assert scaler.get_scale() < 1e30


def test_unscaling_beforehand_cannot_reach_factors(draw: Any) -> None:
    layer, x = layer_and_batch(draw)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = ProjUNN([layer.frame, layer_and_batch(draw)[0].frame], lr=0.1)
    scaler.scale(layer(x).exp().sum()).backward()
    optimizer.param_groups[0]["params"][1].grad = torch.zeros(32, 32, dtype=torch.float64)
    scaler.unscale_(optimizer)
    with pytest.raises(InvalidInputError, match="unscale_"):
        scaler.step(optimizer)


def test_data_parallel_gets_dense_gradients(draw: Any, tmp_path: Path) -> None:
    layer, x = layer_and_batch(draw)
    optimizer = ProjUNN([layer.frame], lr=0.1)

    def train() -> None:
        model = DistributedDataParallel(layer)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).sum().backward()
            assert layer.frame.grad is not None
            optimizer.step()

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        train()
    finally:
        gc.collect()  # a wrapper that outlives the group can wait for its threads forever
        torch.distributed.destroy_process_group()


def test_mixing_with_an_ordinary_optimizer(draw: Any) -> None:
    model = nn.Sequential(OrthogonalLinear(8, 8), nn.Linear(8, 2))
    frames = manifold_parameters(model)
    assert [p.shape for p in frames] == [(8, 8)]
    assert len(euclidean_parameters(model)) == 3
    optimizer = ProjUNN([{"params": frames, "lr": 0.5}], variant="cayley")
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_gradients_that_cannot_be_used(draw: Any) -> None:
    first, second = nn.Parameter(draw.frame(5, 5)), nn.Parameter(draw.frame(5, 5))
    before = [first.detach().clone(), second.detach().clone()]
    optimizer = ProjUNN([first, second], lr=0.1)
    optimizer.step()  # None: nothing moves
    first.grad = torch.zeros(5, 5, dtype=torch.float64).to_sparse()
    with pytest.raises(InvalidInputError, match="sparse"):
        optimizer.step()
    first.grad = torch.full((5, 5), torch.nan, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="non-finite"):
        optimizer.step()
    assert torch.equal(first, before[0])
    assert torch.equal(second, before[1])


def test_skipping_nonfinite_gradients_spares_the_others(draw: Any, defect: Any) -> None:
    parameter = nn.Parameter(draw.frame(3, 5, 5))
    before = parameter.detach().clone()
    optimizer = ProjUNN([parameter], lr=0.1, nonfinite="skip", drift_columns=0)
    parameter.grad = draw.normal(3, 5, 5)
    parameter.grad[1, 0, 0] = torch.inf
    optimizer.step()
    assert torch.equal(parameter[1], before[1])
    assert not torch.equal(parameter[0], before[0])
    assert defect(parameter.detach()) < 1e-12
    assert optimizer.skipped_steps() == 1


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "message"),
    [
        ((4, 4), torch.float32, {"weight_decay": 0.01}, "weight_decay"),
        ((4, 4), torch.float16, {}, "half precision"),
        ((4, 4), torch.bfloat16, {}, "half precision"),
        ((3, 4), torch.float32, {}, "transpose|n >= p"),
        ((4,), torch.float32, {}, "n >= p"),
        ((4, 4), torch.float32, {"rank": 5}, "rank 5"),
        ((4, 4), torch.float32, {"rank": 0}, "rank 0"),
        ((4, 4), torch.float32, {"rank": 1.5}, "rank 1.5"),
        ((4, 4), torch.float32, {"variant": "qr"}, "variant='qr'"),
        ((4, 4), torch.float32, {"momentum": 1.0}, "momentum"),
        ((4, 4), torch.float32, {"lr": -1.0}, "lr"),
    ],
)
def test_what_is_refused_when_it_is_built(
    shape: tuple[int, ...], dtype: torch.dtype, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        ProjUNN([nn.Parameter(torch.zeros(shape, dtype=dtype))], **options)


def test_weight_decay_of_one_group_is_refused(draw: Any) -> None:
    with pytest.raises(InvalidInputError, match="weight_decay"):
        ProjUNN([{"params": [nn.Parameter(draw.frame(3, 3))], "weight_decay": 0.1}])
