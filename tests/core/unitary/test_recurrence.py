"""The recurrence through modReLU: its states and gradients are those of the plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stiefel.unitary import cpu_recurrence, modrelu, modrelu_recurrence
from stiefel.unitary.recurrence import real_sweep


def problem(dtype: torch.dtype, steps: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, dtype=kind, generator=generator).requires_grad_()

    bias = draw(5, kind=dtype.to_real())
    return [draw(steps, 3, 5), draw(5, 5), bias, draw(3, 5)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_states_are_those_of_the_loop(dtype: torch.dtype) -> None:
    inputs, frame, bias, h = problem(dtype)
    found = modrelu_recurrence(inputs, frame, bias, h)
    for step, state in zip(inputs, found, strict=True):
        h = modrelu(step + h @ frame.mT, bias)
        torch.testing.assert_close(state, h, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_gradients_are_those_of_finite_differences(dtype: torch.dtype) -> None:
    assert torch.autograd.gradcheck(modrelu_recurrence, problem(dtype), fast_mode=False)


def test_a_state_of_zero_passes_nothing_on() -> None:
    """As in the plain loop: black pixels at the start leave state and gradient at zero."""
    _, frame, bias, _ = problem(torch.float64)
    bias = bias.detach().abs().requires_grad_()
    inputs = torch.zeros(2, 1, 5, dtype=torch.float64, requires_grad=True)
    states = modrelu_recurrence(inputs, frame, bias, torch.zeros(1, 5, dtype=torch.float64))
    states.sum().backward()
    assert not states.any()
    assert inputs.grad is not None
    assert not inputs.grad.any()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_compiled_loop_agrees_with_separate_calls(dtype: torch.dtype, bound: float) -> None:
    inputs, frame, bias, h = (x.detach() for x in problem(dtype, steps=20))
    if not cpu_recurrence.supports(frame):
        return  # this PyTorch shows no BLAS: there is no compiled loop to compare
    inputs, frame = inputs.transpose(0, 1).contiguous().transpose(0, 1), frame.mT
    states = cpu_recurrence.forward(inputs, frame, bias, h)
    expected = h
    for step, state in zip(inputs, states, strict=True):
        expected = modrelu(step + expected @ frame.mT, bias)
        torch.testing.assert_close(state, expected, rtol=bound, atol=bound)
    grad = states.flip(0)
    separate = real_sweep(grad, states, frame)
    for found, wanted in zip(cpu_recurrence.backward(grad, states, frame), separate, strict=True):
        torch.testing.assert_close(found, wanted, rtol=bound, atol=bound * float(wanted.norm()))


def test_a_state_that_is_not_a_number_stays_one() -> None:
    inputs, frame, bias, h = problem(torch.float32)
    spoilt = inputs.detach().clone()
    spoilt[1, 2, 3] = torch.nan
    states = modrelu_recurrence(spoilt, frame, bias, h)
    assert states[0].isfinite().all()
    assert states[1, 2, 3].isnan()
    assert states[2, 2].isnan().any()
