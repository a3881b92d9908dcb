"""Networks of other libraries behind the interface of this one: a batch in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn


class Adapter(nn.Module, ABC):
    """Holds a network of another library as ``inner``."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What its library reads beside the weights to build the network again."""


def architecture(network: nn.Module) -> nn.Module:
    """The network whose names its users know: without the adapter around it."""
    return network.inner if isinstance(network, Adapter) else network
