"""Products in the whole precision of their dtype, whatever the process allows elsewhere.

TF32 keeps eleven bits and bfloat16 eight of float32's twenty-four: enough for the products of a
layer, not for what makes columns orthonormal.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")
_WHOLE = ("ieee", "none")  # none: nobody has asked for less
_MKLDNN: Any = torch.backends.mkldnn  # its attribute is unknown to torch's own types
# Every older way of asking ends in these two settings; put back, they leave the others true.
_BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, _MKLDNN.matmul)


def products_are_whole() -> bool:
    """Whether float32 products keep all their bits at present."""
    return all(backend.fp32_precision in _WHOLE for backend in _BACKENDS)


@contextmanager
def whole_precision() -> Iterator[None]:
    """Forbid TF32 and bfloat16 inside float32 products until the block ends.

    The setting belongs to the process, as torch has it: products that other threads begin
    meanwhile are whole too.
    """
    before = [backend.fp32_precision for backend in _BACKENDS]
    for backend in _BACKENDS:
        backend.fp32_precision = "ieee"
    try:
        yield
    finally:
        for backend, setting in zip(_BACKENDS, before, strict=True):
            backend.fp32_precision = setting


def in_whole_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function under :func:`whole_precision`; costs two lookups where all are whole."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if products_are_whole():
            return function(*args, **kwargs)
        with whole_precision():
            return function(*args, **kwargs)

    return run
