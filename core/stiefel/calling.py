"""One way to hand a batch to a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


def call(model: nn.Module, batch: Any) -> None:
    """Evaluate the model on a tensor, a tuple of arguments, or a mapping of keywords."""
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)
