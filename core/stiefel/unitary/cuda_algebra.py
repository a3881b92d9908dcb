"""The 2k x 2k algebra of a rank-k update in one launch on CUDA, where Triton is at hand.

In PyTorch alone it is some two hundred tiny launches, which take longer than the update itself.
Triton comes with the CUDA builds of PyTorch; it also needs a C compiler, for a stub that it builds
once per machine. Where that fails, PyTorch does it all.
"""

from __future__ import annotations

import os
import shutil
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

# Codes of the kernels.
VARIANTS = {"tangent": 0, "direct": 1, "cayley": 2}
# Half of the largest real matrix, which lives in registers.
_LARGEST = 16
_COMPILERS = ("cc", "gcc", "clang")


@cache
def available() -> bool:
    """Whether kernels can be compiled here: tried once per process, on one little matrix."""
    compiler = os.environ.get("CC") or next(filter(shutil.which, _COMPILERS), None)
    if find_spec("triton") is None or compiler is None:
        return False
    one = torch.eye(2, dtype=torch.float64, device="cuda")
    try:
        core(one, one[:1, :1], "cayley", accuracy=1.0)
    except Exception as error:  # whatever its compiler, its stub or the driver may say
        warnings.warn(
            f"Triton does not work here ({type(error).__name__}): projUNN takes its slower steps",
            stacklevel=2,
        )
        return False
    return True


def supports(a: Tensor) -> bool:
    """Whether ``core`` can serve a step with this factor ``(..., n, k)``."""
    return a.device.type == "cuda" and _half(a) <= _LARGEST and available()


def core(gamma: Tensor, gram_a: Tensor, variant: str, *, accuracy: float) -> Tensor:
    """Return M of ``small_matrices`` for gamma ``(..., 2k, 2k)`` and a^H a ``(..., k, k)``.

    Both float64 or complex128; gamma is the Gram matrix of [b, W^H a] or [W b, a], not balanced.
    ``accuracy``: of the exponential, where M will be rounded to a narrower dtype.
    """
    gamma, gram_a = gamma.resolve_conj().contiguous(), gram_a.resolve_conj().contiguous()
    M = torch.empty_like(gamma)
    half = _half(gram_a)
    K = padded(half)
    inner = [torch.view_as_real(x) if x.is_complex() else x for x in (gamma, gram_a, M)]
    # Triton launches on the current device.
    with torch.cuda.device_of(gamma):  # type: ignore[no-untyped-call]
        _kernel()[(gamma.shape[:-2].numel(),)](
            *inner, half, COMPLEX=gamma.is_complex(), K=K, VARIANT=VARIANTS[variant],
            ACCURACY=accuracy, num_warps={1: 1, 2: 1, 4: 1, 8: 2}.get(K, 16),
        )  # fmt: skip
    return M


def padded(k: int) -> int:
    """The next power of two, which Triton's shapes are."""
    return 1 << (k - 1).bit_length()


def _half(a: Tensor) -> int:
    return a.shape[-1] * (2 if a.is_complex() else 1)


@cache
def _kernel() -> Any:
    from stiefel.unitary import cuda_small

    return cuda_small.small
