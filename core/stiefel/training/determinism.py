"""The deterministic mode: operations that may differ from run to run are refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stiefel.errors import InvalidInputError

_REFUSAL = "does not have a deterministic implementation"


def seed(number: int, device: torch.device) -> None:
    """Seed the default generators of the CPU and of ``device`` as ``torch.manual_seed`` does.

    That one remembers a stack trace for every kind of device that has not been initialised:
    0.4 ms, where a step of a small network takes 2.
    """
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        torch.cuda.manual_seed(number)


@contextmanager
def deterministic_mode(wanted: bool) -> Iterator[None]:
    """Let torch use deterministic algorithms alone, as long as the block lasts.

    On CPUs the loop gives the same bits with the same number of threads either way; on GPUs some
    kernels add in an order that changes.

    Raises:
        InvalidInputError: the network needs an operation that has no deterministic form there.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if _REFUSAL not in str(error):
            raise
        raise InvalidInputError(
            str(error).split(". ")[0],
            code="not_deterministic",
            fix="set deterministic to false, or device to cpu, or choose another network",
            field="/deterministic",
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
