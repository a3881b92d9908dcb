"""``Conv1D`` of Hugging Face models: a linear layer that stores the transpose of its weight."""

from __future__ import annotations

from torch import Tensor, nn


def is_transposed_linear(module: nn.Module) -> bool:
    """Whether this is the ``Conv1D`` of Hugging Face models: a linear layer storing W^T."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def as_linear(module: nn.Module) -> nn.Linear:
    """A linear layer of the same function, sharing the bias Parameter of a ``Conv1D``."""
    if isinstance(module, nn.Linear):
        return module
    weight, bias = module.weight, module.bias
    assert isinstance(weight, Tensor)
    layer = nn.Linear(1, 1, device="meta")
    layer.weight = nn.Parameter(weight.detach().T.contiguous())
    layer.bias = bias  # type: ignore[assignment]
    layer.out_features, layer.in_features = layer.weight.shape
    return layer
