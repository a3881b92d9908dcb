"""Put one module in the place of another, and other numbers in that of a Parameter's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError

# Of forward and backward passes; those of loading and saving belong to the old names of tensors.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module of this ``name`` stands, under other names too.

    Hooks move along; the handles that removed them from the old module remove them from the new.
    """
    if not name:
        raise InvalidInputError(
            "the model is itself the layer to replace",
            code="layer_is_model",
            fix="wrap it: nn.Sequential(layer)",
        )
    old = model.get_submodule(name)
    for attribute in _HOOKS:
        setattr(new, attribute, getattr(old, attribute))
    for parent in list(model.modules()):
        for leaf, child in list(parent._modules.items()):  # named_children names each once
            if child is old:
                setattr(parent, leaf, new)


def exchange_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Let ``parameter``, the same object, hold ``data`` of any shape; its gradient is dropped."""
    parameter.grad = None
    if data.shape != parameter.shape:
        # A loss that is still alive holds the old graph, whose accumulator of gradients insists on
        # the old shape. Torch makes a new one only when the dtype changes.
        other = torch.float64 if parameter.dtype != torch.float64 else torch.float32
        parameter.data = torch.empty(0, dtype=other, device=parameter.device)
    parameter.data = data
