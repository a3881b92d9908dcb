"""Backward passes, steps and what a caller does between them: right, or refused, never wrong."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stiefel.errors import InvalidInputError
from stiefel.unitary import OrthogonalLinear, ProjUNN, UnitaryLinear, handover
from stiefel.unitary.stepping import step_


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"factored": False}], ids=str)
@pytest.mark.parametrize("sizes", [(32, 32), (40, 32), (32, 40)])
def test_a_graph_older_than_the_step_is_refused(
    draw: Any, sizes: tuple[int, int], options: dict[str, Any]
) -> None:
    layer = OrthogonalLinear(*sizes, dtype=torch.float64, generator=draw.generator)
    optimizer = ProjUNN([layer.frame], lr=0.05, **options)
    loss = layer(draw.normal(4, sizes[0]).requires_grad_()).square().sin().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("rank", [1, 20])
@pytest.mark.parametrize("columns", [range(0), range(2, 3)])
def test_every_step_tells_torch_that_the_matrix_changed(
    draw: Any, rank: int, columns: range
) -> None:
    W = draw.frame(40, 40)
    view = W.view(1, 40, 40)
    before = W._version
    step_(view, *draw.step(40, 40, rank, 1), columns=columns)
    assert W._version > before


KINDS = [
    (OrthogonalLinear, (32, 32)),
    (OrthogonalLinear, (32, 40)),
    (OrthogonalLinear, (40, 32)),
    (UnitaryLinear, (40, 32)),
]


def twins(
    draw: Any, kind: type[OrthogonalLinear] = OrthogonalLinear, sizes: tuple[int, int] = (32, 32)
) -> list[tuple[OrthogonalLinear, ProjUNN]]:
    """A layer that hands over factors, and a copy of it with dense gradients."""
    dtype = torch.complex128 if kind is UnitaryLinear else torch.float64
    layer = kind(*sizes, dtype=dtype, generator=draw.generator)
    twin = copy.deepcopy(layer)
    dense = ProjUNN([twin.frame], lr=0.05, rank=min(sizes), factored=False)
    return [(layer, ProjUNN([layer.frame], lr=0.05)), (twin, dense)]


def loss_of(layer: OrthogonalLinear, x: Tensor) -> Tensor:
    return layer(x).abs().square().sin().sum()


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
@pytest.mark.parametrize("how", ["autograd.grad", "backward(inputs)"])
def test_a_gradient_of_the_input_leaves_nothing_for_the_step(
    draw: Any, kind: type[OrthogonalLinear], sizes: tuple[int, int], how: str
) -> None:
    pairs = twins(draw, kind, sizes)
    x = draw.normal(4, sizes[0], dtype=pairs[0][0].frame.dtype)
    for layer, optimizer in pairs:
        attacked = x.clone().requires_grad_()
        if how == "autograd.grad":
            (ascent,) = torch.autograd.grad(loss_of(layer, attacked), attacked)
        else:
            loss_of(layer, attacked).backward(inputs=[attacked])
            ascent = attacked.grad
        assert handover.pending(layer.frame) is None
        loss_of(layer, x + 0.1 * ascent).backward()
        optimizer.step()
    assert torch.allclose(pairs[0][0].frame, pairs[1][0].frame, atol=1e-11)


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
def test_who_asks_for_the_gradient_of_a_frame_gets_it(
    draw: Any, kind: type[OrthogonalLinear], sizes: tuple[int, int]
) -> None:
    pairs = twins(draw, kind, sizes)
    x = draw.normal(4, sizes[0], dtype=pairs[0][0].frame.dtype).requires_grad_()
    gradients = [
        torch.autograd.grad(loss_of(layer, x), [layer.frame, x], retain_graph=True)
        for layer, _ in pairs
    ]
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two)
    assert handover.pending(pairs[0][0].frame) is None


def test_a_pass_that_names_the_frame_hands_over_factors(draw: Any) -> None:
    (layer, _), _ = twins(draw)
    x = draw.normal(4, 32).requires_grad_()
    loss_of(layer, x).backward(inputs=[layer.frame])
    assert handover.pending(layer.frame) is not None
    assert layer.frame.grad is None
    assert x.grad is None


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"nonfinite": "skip"}], ids=str)
def test_a_batch_without_rows_is_no_gradient(
    draw: Any, kind: type[OrthogonalLinear], sizes: tuple[int, int], options: dict[str, Any]
) -> None:
    dtype = torch.complex128 if kind is UnitaryLinear else torch.float64
    layer = kind(*sizes, dtype=dtype, generator=draw.generator)
    optimizer = ProjUNN([layer.frame], lr=0.05, **options)
    before = layer.frame.detach().clone()
    empty = draw.normal(0, sizes[0], dtype=dtype).requires_grad_()
    loss_of(layer, empty).backward()
    assert empty.grad is not None
    optimizer.clip_grad_norm_(1.0)
    optimizer.step()
    assert torch.equal(layer.frame, before)
    (gradient,) = torch.autograd.grad(loss_of(layer, empty), layer.frame)
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_a_batch_without_rows_adds_nothing_to_the_others(draw: Any) -> None:
    pairs = twins(draw)
    x = draw.normal(4, 32)
    for layer, optimizer in pairs:
        for rows in (x[:0], x, x[:0].view(3, 0, 32)):
            loss_of(layer, rows).backward()
        optimizer.step()
    assert torch.allclose(pairs[0][0].frame, pairs[1][0].frame, atol=1e-11)


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
@pytest.mark.parametrize("passes", [1, 2])
def test_an_input_overwritten_before_the_step_is_told(
    draw: Any, kind: type[OrthogonalLinear], sizes: tuple[int, int], passes: int
) -> None:
    (layer, optimizer), (twin, dense) = twins(draw, kind, sizes)
    buffer = draw.normal(3, sizes[0], dtype=layer.frame.dtype)
    fresh = [draw.normal(3, sizes[0], dtype=layer.frame.dtype) for _ in range(passes)]
    before = layer.frame.detach().clone()
    for x in fresh:
        buffer.copy_(x)
        loss_of(layer, buffer).backward()
        loss_of(twin, x).backward()
    if passes == 1:
        buffer.zero_()
    for act in (optimizer.step, lambda: optimizer.clip_grad_norm_(1.0)):
        with pytest.raises(InvalidInputError, match="overwritten") as caught:
            act()
        assert caught.value.code == "overwritten_input"
    assert torch.equal(layer.frame, before)
    optimizer.zero_grad()
    for x in fresh:
        loss_of(layer, x).backward()
    optimizer.clip_grad_norm_(1e9)
    optimizer.step()
    dense.step()
    assert torch.allclose(layer.frame, twin.frame, atol=1e-11)


@pytest.mark.parametrize(("kind", "sizes"), KINDS)
@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_an_input_that_is_a_parameter_may_be_stepped_first(
    draw: Any, kind: type[OrthogonalLinear], sizes: tuple[int, int], shape: tuple[int, ...]
) -> None:
    pairs = twins(draw, kind, sizes)
    start = draw.normal(3, sizes[0], dtype=pairs[0][0].frame.dtype)
    for layer, optimizer in pairs:
        x = nn.Parameter(start.clone())
        others = torch.optim.SGD([x], lr=0.5)
        loss_of(layer, x.view(*shape, sizes[0])).backward()
        others.step()
        optimizer.step()
    assert torch.allclose(pairs[0][0].frame, pairs[1][0].frame, atol=1e-11)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_see_their_buffer_overwritten_too(draw: Any, reentrant: bool) -> None:
    (layer, optimizer), _ = twins(draw)
    buffer = draw.normal(3, 32).requires_grad_()
    checkpoint(layer, buffer, use_reentrant=reentrant).square().sin().sum().backward()
    with torch.no_grad():
        buffer.zero_()
    with pytest.raises(InvalidInputError, match="overwritten"):
        optimizer.step()


def test_a_layer_saved_between_backward_and_step_keeps_its_factors(draw: Any) -> None:
    (layer, optimizer), _ = twins(draw)
    buffer = draw.normal(3, 32)
    buffer.mul_(2)
    loss_of(layer, buffer).backward()
    loaded = pickle.loads(pickle.dumps(layer))
    later = ProjUNN([loaded.frame], lr=0.05)
    optimizer.step()
    later.step()
    assert torch.equal(loaded.frame, layer.frame)
