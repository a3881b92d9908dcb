"""How many CPU threads a step is worth.

In a worker's child threads sleep while they wait, so that busy neighbours do not starve each other
(OMP_WAIT_POLICY=passive), and to wake them takes longer than half of a small operation. With two
threads instead of one, steps on a slow AMD EPYC took 1.4 to 2.1 times as long where they touch up
to 6 MB (perceptrons of width 32 to 256, a ViT of width 16), as long at 9 MB (width 256, batch 256;
LeNet5, batch 8), and 0.86 of the time at 19 and 28 MB (LeNet5, batch 64; four layers of 500).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

ONE_THREAD_BYTES = 2**23  # that a step touches


@contextmanager
def threads_for(step_bytes: int, device: torch.device) -> Iterator[None]:
    """Let one thread compute, as long as the block lasts, where more would only wait.

    The number depends on the spec and the data alone: sums over threads are added in another
    order, and a run that goes on elsewhere must end with the same bits.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and step_bytes <= ONE_THREAD_BYTES:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
