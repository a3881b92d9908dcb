"""Backward passes, steps and what a caller does between them: right, or refused, never wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stiefel.unitary import OrthogonalLinear, ProjUNN
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
