"""Networks of other libraries behind the interface of this one: a batch in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn


class Adapter(nn.Module, ABC):
    """Holds a network of another library as ``inner``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What its library reads beside the weights to build the network again."""


def out_of_memory(error: BaseException) -> bool:
    """Whether another library failed for want of memory, which is no fault of its config."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error)  # the allocator of the CPU raises RuntimeError
    return "can't allocate memory" in words or "not enough memory" in words


def architecture(network: nn.Module) -> nn.Module:
    """The network whose names its users know: without the adapter around it."""
    return network.inner if isinstance(network, Adapter) else network
