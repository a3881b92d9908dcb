"""What the account of a model that is factored front to back says of its layers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from stiefel.lowrank import load_factored
from stiefel.projection.calibration import collect_moments
from stiefel.projection.sequential import CrossMoment, factorize_sequentially


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(20, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 10)]
    return nn.Sequential(*layers).to(dtype)


def inputs(rows: int = 300) -> Tensor:
    return torch.randn(rows, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("correct_bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_predicted_error_is_that_of_the_dense_models_output(
    dtype: torch.dtype, correct_bias: bool
) -> None:
    model, x = network(dtype), inputs().to(dtype)
    names, batches = ["0", "2", "4"], list((x + 0.5).split(100))
    moments = collect_moments(model, names, batches)
    made = factorize_sequentially(
        model, moments, batches, ranks=dict.fromkeys(names, 4), correct_bias=correct_bias
    )
    factored = load_factored(network(dtype), made.tensors).model
    for name in names:
        parts = made.tensors[f"{name}.factor_out"], made.tensors[f"{name}.factor_in"]
        weights = model.get_submodule(name).weight, parts[0].double() @ parts[1].double()
        outputs = [
            each[: int(name)](x + 0.5).double() @ weight.double().mT + each.get_submodule(name).bias
            for each, weight in zip((model, factored), weights, strict=True)
        ]
        assert made.layers[name].shift == 0
        measured = float((outputs[0] - outputs[1]).detach().norm())
        rounding = 1e-6 if dtype == torch.float64 else 1e-2
        assert made.layers[name].predicted_error == pytest.approx(measured, rel=rounding)


@pytest.mark.parametrize("gap", [0.0, 1e-9])
@pytest.mark.parametrize("centred", [False, True])
def test_small_errors_keep_their_digits(gap: float, centred: bool) -> None:
    generator = torch.Generator().manual_seed(2)
    W, x, noise = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((8, 12), (200, 12), (200, 12))
    )
    received, P = x + 1 + gap * noise, W + 1e-9 * torch.randn(8, 12, generator=generator)
    moment = CrossMoment(12)
    for rows in zip((x + 1).split(70), received.split(70), strict=True):
        moment.add(*rows)
    change = (x + 1) @ W.mT - received @ P.mT
    change = change - change.mean(0) if centred else change
    error = moment.output_error(W, [P], centred=centred)
    assert error == pytest.approx(float(change.norm()), rel=1e-5)
    if not gap:
        assert moment.output_error(W, [W], centred=centred) == 0
