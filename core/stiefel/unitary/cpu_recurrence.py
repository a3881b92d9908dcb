"""The real modReLU recurrence on the CPU as one compiled loop instead of several calls a step.

For the hundreds of small steps of a sequence the calls themselves cost more than the products.
Products run in the BLAS that PyTorch is linked to, on its threads; the rest is compiled by numba.

Importing this module imports numba.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.extending import intrinsic as numba_intrinsic
from torch import Tensor

from stiefel.unitary.cpu_tasks import Array, compiled, kept, types

_intrinsic: Callable[[Callable[..., Any]], Any] = numba_intrinsic
_ENTRIES = {torch.float32: "sgemm_", torch.float64: "dgemm_"}


def forward(inputs: Tensor, frame: Tensor, bias: Tensor, h: Tensor) -> Tensor:
    """Return the states of ``h_t = modrelu(inputs_t + U h_{t-1})``, (T, B, N)."""
    states = inputs.clone(memory_format=torch.contiguous_format)
    arrays = (states, frame.contiguous(), bias.contiguous(), h.contiguous())
    _forward(gemm(frame.dtype), _sizes(states), _one(states), *_arrays(*arrays))
    return states


def backward(grad: Tensor, states: Tensor, frame: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients (T, B, N) to what enters the nonlinearity, and (N,) to the bias."""
    delta = grad.clone(memory_format=torch.contiguous_format)
    grad_bias = torch.zeros_like(frame[0])
    arrays = (delta, states, frame.contiguous(), grad_bias)
    _backward(gemm(frame.dtype), _sizes(states), _one(states), *_arrays(*arrays))
    return delta, grad_bias


def supports(frame: Tensor) -> bool:
    """Whether this loop can run: real numbers on the CPU, and a BLAS to call."""
    return frame.device.type == "cpu" and frame.dtype in _ENTRIES and gemm(frame.dtype) != 0


@cache
def gemm(dtype: torch.dtype) -> int:
    """Return the address of the Fortran entry of PyTorch's BLAS, or 0 where none is found."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        entry = getattr(ctypes.CDLL(str(library)), _ENTRIES[dtype])
    except (OSError, AttributeError):
        return 0
    return ctypes.cast(entry, ctypes.c_void_p).value or 0


def _arrays(*tensors: Tensor) -> tuple[Array, ...]:
    return tuple(x.detach().numpy() for x in tensors)


def _sizes(states: Tensor) -> Array:
    """What Fortran is told: N, B, and the letters for as it is, and transposed."""
    return np.array([states.shape[2], states.shape[1], ord("N"), ord("T")], dtype=np.int32)


def _one(states: Tensor) -> Array:
    return np.ones(1, dtype=states[:0].detach().numpy().dtype)


@_intrinsic
def _call(_: Any, entry: Any, words: Any) -> Any:
    """Call the C function at an address with the 13 words of a tuple, pointers all."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 13)
        function = builder.inttoptr(args[0], kind.as_pointer())
        builder.call(function, [builder.extract_value(args[1], at) for at in range(13)])
        return context.get_dummy_value()

    return types.void(types.int64, words), codegen


@compiled
def _add_product(entry: Any, sizes: Any, one: Any, form: int, U: Any, x: Any, y: Any) -> None:
    """``y += x U`` (form 2) or ``y += x U^T`` (form 3), all row by row: Fortran sees transposes."""
    n, b, letter = sizes.ctypes.data, sizes.ctypes.data + 4, sizes.ctypes.data + 4 * form
    scale, plain = one.ctypes.data, sizes.ctypes.data + 8
    U_, x_, y_ = U.ctypes.data, x.ctypes.data, y.ctypes.data
    _call(entry, (letter, plain, n, b, n, scale, U_, n, x_, n, scale, y_, n))


@kept
def _forward(entry: Any, sizes: Any, one: Any, states: Any, U: Any, bias: Any, h: Any) -> None:
    for t in range(states.shape[0]):
        state = states[t]
        _add_product(entry, sizes, one, 3, U, states[t - 1] if t else h, state)
        for i in range(state.shape[0]):
            for j in range(state.shape[1]):
                z = state[i, j]
                size = max(abs(z) + bias[j], 0)
                # Zero stays zero, and NaN is not lost.
                state[i, j] = size if z > 0 else (-size if z < 0 else z)


@kept
def _backward(
    entry: Any, sizes: Any, one: Any, delta: Any, states: Any, U: Any, grad_bias: Any
) -> None:
    for t in range(states.shape[0] - 1, -1, -1):
        own, state = delta[t], states[t]
        if t + 1 < states.shape[0]:
            _add_product(entry, sizes, one, 2, U, delta[t + 1], own)
        for i in range(own.shape[0]):
            for j in range(own.shape[1]):
                open_ = state[i, j] != 0  # a unit is open where its state is not zero
                own[i, j] = own[i, j] if open_ else 0
                grad_bias[j] += own[i, j] if state[i, j] > 0 else -own[i, j]
