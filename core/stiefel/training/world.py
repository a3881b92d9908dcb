"""One process among several that train one network together."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stiefel.errors import InvalidInputError
from stiefel.lowrank.reduce import prepare_for_ddp
from stiefel.training.data.dataset import Batch


class World:
    """Rank and size as torch's launcher sets them; alone without it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank = int(os.environ.get("RANK", "0")) if dist.is_initialized() else 0
        self.size = dist.get_world_size() if dist.is_initialized() else 1

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network whose backward pass averages gradients over the processes."""
        if self.size == 1:
            return network
        prepare_for_ddp(network)  # low-rank layers change shape and average for themselves
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids)

    def share(self, batch: Batch) -> Batch:
        """The part of a batch that falls to this process, on its device."""
        if len(batch.y) < self.size:
            raise InvalidInputError(
                f"a batch of {len(batch.y)} cannot be shared by {self.size} devices",
                code="batch_too_small",
                fix="raise batch_size, give more examples if they are fewer, or lower devices",
                field="/devices",
            )
        mine = slice(self.rank, None, self.size)
        return Batch(batch.x[mine].to(self.device), batch.y[mine].to(self.device))

    def average(self, values: Tensor) -> Tensor:
        """The mean of each number over the processes."""
        if self.size == 1:
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values / self.size

    def agree(self, wish: bool) -> bool:
        """What the first process wishes, known to all."""
        if self.size == 1:
            return wish
        flag = torch.tensor(int(wish), device=self.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def tell(self, values: list[float]) -> list[float]:
        """The first process's numbers, known to all."""
        if self.size == 1:
            return values
        shared = torch.tensor(values, device=self.device, dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return [float(value) for value in shared.tolist()]
