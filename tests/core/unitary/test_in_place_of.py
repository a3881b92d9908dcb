"""Orthogonal layers where torch's own stood: called, averaged, cast and differentiated alike."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from stiefel.errors import InvalidInputError
from stiefel.unitary import OrthogonalLinear, OrthogonalRNN, ProjUNN, to_unitary


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_a_swapped_recurrence_is_called_as_before(
    draw: Any, batch_first: bool, nonlinearity: str
) -> None:
    old = nn.RNN(3, 5, batch_first=batch_first, nonlinearity=nonlinearity)
    with torch.no_grad():
        old.weight_hh_l0.copy_(draw.frame(5, 5, dtype=torch.float32))
    model = nn.Sequential(copy.deepcopy(old))
    assert not to_unitary(model).skipped
    new = model[0]
    assert isinstance(new, OrthogonalRNN)
    x, h = draw.normal(4, 4, 3, dtype=torch.float32), draw.normal(1, 4, 5, dtype=torch.float32)
    packed = pack_padded_sequence(x, [2, 4, 1, 3], batch_first=batch_first, enforce_sorted=False)
    for arguments in ((x,), (x, h), (x[0],), (x[0], h[:, 0]), (packed,), (packed, h)):
        for got, wanted in zip(new(*arguments), old(*arguments), strict=True):
            if not isinstance(got, torch.Tensor):
                got, wanted = (pad_packed_sequence(s, batch_first)[0] for s in (got, wanted))
            torch.testing.assert_close(got, wanted)


def test_what_a_recurrence_cannot_take_is_named(draw: Any) -> None:
    rnn = OrthogonalRNN(3, 5, nonlinearity="modrelu")
    x = draw.normal(2, 4, 3, dtype=torch.float32)
    with pytest.raises(InvalidInputError, match="state of shape"):
        rnn(x, torch.zeros(2, 5))
    with pytest.raises(InvalidInputError, match="packed"):
        rnn(pack_padded_sequence(x, [4, 2], batch_first=True))
    for wrong in (x[..., :2], x[:, :0], x[None]):
        with pytest.raises(InvalidInputError, match="an input of shape"):
            rnn(wrong)


def test_passes_add_up_beyond_the_rank_that_is_handed_over(draw: Any) -> None:
    layer = OrthogonalLinear(64, 64, generator=draw.generator)
    x = draw.normal(36, 64, dtype=torch.float32)
    frames = []
    for factored, parts in ((True, x.split(12)), (False, [x])):
        twin = copy.deepcopy(layer)
        optimizer = ProjUNN([twin.frame], lr=0.01, rank=64, factored=factored)
        for part in parts:
            twin(part).pow(3).sum().backward()
        optimizer.step()
        frames.append(twin.frame.detach())
    torch.testing.assert_close(*frames)


@pytest.mark.parametrize("sizes", [(6, 6), (6, 9), (9, 6)])
def test_a_gradient_penalty_needs_dense_gradients(draw: Any, sizes: tuple[int, int]) -> None:
    layer = OrthogonalLinear(*sizes, dtype=torch.float64)
    x = draw.normal(1, sizes[0]).requires_grad_()

    def penalty(x: torch.Tensor) -> torch.Tensor:
        (slope,) = torch.autograd.grad(layer(x).pow(3).sum(), x, create_graph=True)
        return slope.square().sum()

    optimizer = ProjUNN([layer.frame], lr=0.1, factored=False)
    assert torch.autograd.gradcheck(penalty, (x,))
    penalty(x).backward()
    assert layer.frame.grad is not None
    optimizer.step()


def test_autocast_gives_what_it_gives_for_a_linear_layer(draw: Any) -> None:
    layer = OrthogonalLinear(8, 8)
    for factored in (True, False):
        optimizer = ProjUNN([layer.frame], lr=0.1, factored=factored)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(draw.normal(2, 8, dtype=torch.float32))
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        optimizer.step()
        assert layer.frame.dtype == torch.float32
