"""Put one module in the place of another inside a model."""

from __future__ import annotations

from torch import nn

from stiefel.errors import InvalidInputError


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module of this ``name`` stands, under other names too."""
    if not name:
        raise InvalidInputError(
            "the model is itself the layer to replace",
            code="layer_is_model",
            fix="wrap it: nn.Sequential(layer)",
        )
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for leaf, child in list(parent._modules.items()):  # named_children names each once
            if child is old:
                setattr(parent, leaf, new)
