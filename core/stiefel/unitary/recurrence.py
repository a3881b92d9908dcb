"""modReLU, and the recurrence through it as one differentiable operation.

Autograd through a Python loop records five small operations per step; here a step is one product
and the nonlinearity, and the gradient of the recurrence is one product over all steps together.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# The gradient of |z| at 0 is undefined: keep a hair away from it.
HAIR = 1e-12


def modrelu(z: Tensor, bias: Tensor) -> Tensor:
    """Return ``z / |z| * relu(|z| + bias)``, the phase kept; zero where z is zero.

    Source: Arjovsky, Shah, Bengio, Unitary evolution recurrent neural networks, 2016.
    """
    if not z.is_complex():
        return torch.sign(z) * torch.relu(z.abs() + bias)
    size = torch.sqrt(z.real.square() + z.imag.square() + HAIR)
    return z * (torch.relu(size + bias) / size)


def modrelu_recurrence(inputs: Tensor, frame: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    """Return all states of ``h_t = modrelu(inputs_t + U h_{t-1})``.

    Args:
        inputs: (T, B, N), time first.
        frame: U, (N, N).
        bias: (N,), real.
        h: the state before the first step, (B, N).

    Returns:
        (T, B, N). Memory: inputs and states are kept for the gradient. Cost: 2 T B N^2 products
        forward, twice that backward.
    """
    states: Tensor = _Recurrence.apply(inputs, frame, bias, h)  # type: ignore[no-untyped-call]
    return states


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, frame: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        if (compiled := _compiled(frame)) is not None:
            states: Tensor = compiled.forward(inputs, frame, bias, h)
            ctx.save_for_backward(states, states, frame, bias, h)
            return states
        before = inputs.clone(memory_format=torch.contiguous_format)
        states = torch.empty_like(before)
        last = h
        for z, state in zip(before.unbind(), states.unbind(), strict=True):
            torch.addmm(z, last, frame.mT, out=z)
            last = state.copy_(modrelu(z, bias))
        ctx.save_for_backward(before, states, frame, bias, h)
        return states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        before, states, frame, bias, h = ctx.saved_tensors
        if frame.is_complex():
            delta, grad_bias = _complex_sweep(before, frame, bias, grad)
        else:
            sweep = real_sweep if (compiled := _compiled(frame)) is None else compiled.backward
            delta, grad_bias = sweep(grad, states, frame)
        earlier = torch.cat((h[None], states[:-1])).flatten(0, 1)
        grad_frame = delta.flatten(0, 1).mT @ earlier.conj()
        return delta, grad_frame, grad_bias, delta[0] @ frame.conj()


def _compiled(frame: Tensor) -> Any:
    """The compiled loop where it applies. Imported late: only who runs it compiles anything."""
    if frame.device.type != "cpu" or frame.is_complex():
        return None
    from stiefel.unitary import cpu_recurrence

    return cpu_recurrence if cpu_recurrence.supports(frame) else None


def real_sweep(grad: Tensor, states: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients (T, B, N) to what enters the nonlinearity, and (N,) to the bias."""
    delta = states.ne(0).to(grad.dtype)  # a unit is open where its state is not zero
    carried = torch.zeros_like(grad[0])
    for own, out in reversed(list(zip(grad.unbind(), delta.unbind(), strict=True))):
        out.mul_(carried.add_(own))
        torch.mm(out, frame, out=carried)
    return delta, (delta * states.sign()).sum((0, 1))


def _complex_sweep(
    before: Tensor, frame: Tensor, bias: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`real_sweep`, for ``z g(|z|)`` with ``g(s) = relu(s + bias) / s``."""
    size = torch.sqrt(before.real.square() + before.imag.square() + HAIR)
    open_ = size + bias > 0
    gain = torch.relu(size + bias) / size
    # g'(s) is -bias / s^2 where the unit is open, and ds = Re(conj(z) dz) / s.
    bend = torch.where(open_, -bias / size.square(), 0)
    direction = before / size
    delta, back = torch.empty_like(grad), frame.conj()
    carried = torch.zeros_like(grad[0])
    pulls = torch.empty_like(size)
    for t in reversed(range(len(grad))):
        carried = carried + grad[t]
        torch.mul(carried.real, direction[t].real, out=pulls[t])
        pulls[t].addcmul_(carried.imag, direction[t].imag)
        torch.addcmul(carried * gain[t], before[t], bend[t] * pulls[t], out=delta[t])
        carried = delta[t] @ back
    return delta, torch.where(open_, pulls, 0).sum((0, 1))
