"""Gradients of low-rank layers across processes, beside DistributedDataParallel.

DDP fixes its buckets when it wraps a model, and cores change size. So DDP is told to leave the
cores and bases alone, and the integrators average what they need themselves: r (n + m) + r^2
numbers per layer in place of n m. The wrapper is never rebuilt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from stiefel.lowrank.layer import LowRankLayer


def prepare_for_ddp(model: nn.Module, *, also: Iterable[str] = ()) -> nn.Module:
    """Mark the factors of every low-rank layer as not DDP's business; call it before wrapping.

    Args:
        model: holds :class:`LowRankLayer` modules; every other parameter stays with DDP.
        also: names of further parameters that an integrator averages.

    Also copies the factors of process 0 to all others, as DDP does for what it manages.
    """
    names = list(also)
    for name, module in model.named_modules():
        if isinstance(module, LowRankLayer):
            names += [f"{name}.{part}" if name else part for part in "USV"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(  # type: ignore[no-untyped-call]
        model, names
    )
    if is_distributed():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        with torch.no_grad():
            for name in names:
                distributed.broadcast(tensors[name].data, src=0)
    return model


def is_distributed() -> bool:
    """Whether more than one process trains together."""
    return (
        distributed.is_available()
        and distributed.is_initialized()
        and distributed.get_world_size() > 1
    )


def average_(tensors: Sequence[Tensor]) -> None:
    """Average in place over all processes, in one message; nothing to do in a single process."""
    if not tensors or not is_distributed():
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    offset = 0
    for tensor in tensors:
        tensor.copy_(flat[offset : offset + tensor.numel()].view_as(tensor))
        offset += tensor.numel()
