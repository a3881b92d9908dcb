"""How the CPU kernels are compiled, and how a compiled task reaches the threads of PyTorch.

A task is a C function of one pointer. ``share`` hands it to the OpenMP threads that PyTorch has
started anyway: a second pool (numba's own) would fight them for the cores, as idle OpenMP workers
spin for some milliseconds before they sleep. Where that library cannot be found (PyTorch built
without OpenMP, or with one that lacks the entry), the calling thread does all tasks.

Importing this module imports numba.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from llvmlite import ir
from numba import types as numba_types
from numba.extending import intrinsic as numba_intrinsic

F = TypeVar("F", bound=Callable[..., Any])
Array = Any
_njit: Any = numba.njit
_cfunc: Any = numba.cfunc
_carray: Any = vars(numba)["carray"]
_intrinsic: Callable[[Callable[..., Any]], Any] = numba_intrinsic
types: Any = numba_types

# Reassociation lets sums run in vector lanes. NaN and infinity keep their meaning.
_MATH = {"reassoc", "contract", "nsz", "arcp"}
_TASKS = {np.dtype(np.float32): types.float32, np.dtype(np.float64): types.float64}


def compiled(function: F) -> F:
    """Compile for use by other compiled functions."""
    result: F = _njit(nogil=True, fastmath=_MATH, boundscheck=False)(function)
    return result


def inlined(function: F) -> F:
    """Like ``compiled``, for what is called per stretch of a row: a call costs half the work."""
    options = {"nogil": True, "fastmath": _MATH, "boundscheck": False, "forceinline": True}
    result: F = _njit(**options)(function)
    return result


def kept(function: F) -> F:
    """Compile for one thread and keep the machine code on disk."""
    options = {"nogil": True, "fastmath": _MATH, "boundscheck": False}
    try:
        result: F = _njit(cache=True, **options)(function)
    except RuntimeError:  # no folder to cache in: a read-only installation without a home
        result = _njit(**options)(function)
    return result


class Task:
    """A function of a pointer, compiled per dtype on first use and kept on disk.

    The function finds its arguments by ``next_task``, ``number`` and ``matrices`` behind the
    pointer, and takes numbered tasks until none are left.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        self._function = function
        self._entries: dict[Any, Any] = {}

    def run(
        self, tasks: int, threads: int, numbers: tuple[int, ...], arrays: tuple[Array, ...]
    ) -> None:
        """Do ``tasks`` tasks on at most ``threads`` threads; arrays contiguous, of one dtype."""
        dtype = arrays[0].dtype
        if dtype not in self._entries:
            self._entries[dtype] = self._compile(dtype)
        addresses = [array.ctypes.data for array in arrays]
        words = np.array([0, tasks, *numbers, *addresses], dtype=np.int64)
        entry, start = self._entries[dtype], _start()
        if threads > 1 and start is not None:
            start(entry.address, words.ctypes.data, min(threads, tasks), 0)
        else:
            _call(entry.address)(words.ctypes.data)

    def _compile(self, dtype: Any) -> Any:
        signature = types.void(types.CPointer(_TASKS[dtype]))
        options = {"fastmath": _MATH, "boundscheck": False}
        try:
            return _cfunc(signature, cache=True, **options)(self._function)
        except RuntimeError:  # as in ``kept``
            return _cfunc(signature, **options)(self._function)


@cache
def _call(address: int) -> Any:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


@cache
def _start() -> Any:
    """``GOMP_parallel`` of the OpenMP library that PyTorch itself uses, or None."""
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        # Looked up through PyTorch's own dependencies: no other OpenMP library can answer.
        start = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):
        return None
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    start.restype = None
    return start


@_intrinsic
def _words(_: Any, data: Any) -> Any:
    """The same pointer, to integers."""
    result = types.CPointer(types.int64)

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(args[0], context.get_value_type(sig.return_type))

    return result(data), codegen


@_intrinsic
def _pointer(_: Any, data: Any, address: Any) -> Any:
    """A pointer of data's type from an address."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.inttoptr(args[1], context.get_value_type(sig.return_type))

    return data(data, types.int64), codegen


@_intrinsic
def _ticket(_: Any, words: Any) -> Any:
    """Return the first word and add one to it, atomically."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", args[0], ir.IntType(64)(1), "monotonic")

    return types.int64(words), codegen


@compiled
def next_task(data: Any) -> Any:
    """Take the next number, or -1 if all are taken."""
    words = _words(data)
    mine = _ticket(words)
    return mine if mine < words[1] else -1


@compiled
def number(data: Any, at: int) -> Any:
    """Return the word at an index: numbers first, then addresses."""
    return _words(data)[2 + at]


@compiled
def matrix(data: Any, at: int, index: Any, rows: Any, columns: Any) -> Any:
    """Return the matrix ``index`` of the contiguous array (..., rows, columns) at a word."""
    itemsize = _carray(data, 1).itemsize
    address = number(data, at) + index * rows * columns * itemsize
    return _carray(_pointer(data, address), (rows, columns))
