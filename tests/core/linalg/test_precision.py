"""What makes columns orthonormal runs neither in TF32 nor bfloat16; the setting stays as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from stiefel.linalg import polar_factor
from stiefel.linalg.precision import in_whole_precision, products_are_whole
from stiefel.lowrank import LowRankIntegrator, LowRankLinear, OialrSchedule
from stiefel.unitary import OrthogonalLinear, ProjUNN, handover, rank_k_update_, step_

CUDA, CPU = torch.backends.cuda.matmul, torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = CUDA.fp32_precision, CPU.fp32_precision
    yield
    CUDA.fp32_precision, CPU.fp32_precision = before


def _allow_tf32() -> None:
    CUDA.allow_tf32 = True


WAYS: dict[str, Callable[[], Any]] = {
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": _allow_tf32,
}


@pytest.mark.parametrize("way", WAYS)
def test_the_setting_returns_and_its_older_names_still_answer(way: str) -> None:
    WAYS[way]()
    before = torch.get_float32_matmul_precision(), CUDA.allow_tf32, CPU.fp32_precision
    seen = []
    in_whole_precision(lambda: seen.append((CUDA.fp32_precision, CPU.fp32_precision)))()
    assert seen == [("ieee", "ieee")]
    after = torch.get_float32_matmul_precision(), CUDA.allow_tf32, CPU.fp32_precision
    assert after == before
    assert not products_are_whole()


def test_an_error_leaves_it_as_it_was() -> None:
    torch.set_float32_matmul_precision("high")

    @in_whole_precision
    def fails() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert torch.get_float32_matmul_precision() == "high"


def _watched(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[bool]:
    found, original = [], getattr(owner, name)

    def watching(*args: Any, **kwargs: Any) -> Any:
        found.append(products_are_whole())
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, watching)
    return found


def test_polar_factors_and_steps_are_computed_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("medium")
    found = _watched(monkeypatch, torch.Tensor, "detach")
    polar_factor(torch.randn(20, 10))
    W, a, b = torch.eye(8), torch.full((8, 1), 0.01), torch.ones(8, 1)
    step_(W, a, b)
    assert found
    assert all(found)
    found = _watched(monkeypatch, torch, "cat")
    rank_k_update_(W, a, b)
    assert found
    assert all(found)


def test_optimizers_step_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("high")
    found = _watched(monkeypatch, torch.optim.AdamW, "step")
    layer = nn.Sequential(LowRankLinear(12, 12, 4))
    for schedule in (
        LowRankIntegrator(layer, torch.optim.AdamW(layer.parameters())),
        OialrSchedule(layer, torch.optim.AdamW(layer.parameters()), delay=1, period=1, cutoff=0.1),
    ):
        layer.zero_grad()
        layer(torch.randn(6, 12)).square().sum().backward()
        schedule.step()
    parameter = nn.Parameter(torch.eye(6))
    parameter.grad = torch.randn(6, 6)
    sketches = _watched(monkeypatch, torch.linalg, "qr")
    ProjUNN([parameter], lr=1e-3).step()
    assert found == [True, True]
    assert sketches
    assert all(sketches)
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_layer_hands_over_its_products_only_where_they_are_whole(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    layer = OrthogonalLinear(32, 32)
    optimizer = ProjUNN([layer.frame], lr=1e-3)
    layer(torch.randn(4, 32)).square().sum().backward()
    gradient = handover.pending(layer.frame)
    assert gradient is not None
    assert (gradient.products is not None) == (precision == "highest")
    optimizer.step()
