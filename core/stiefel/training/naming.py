"""The layers of a built network by name, for the patterns of a spec."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from stiefel.specs.selecting import check_patterns


def check_layer_names(
    network: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """Return the names of all layers with a weight matrix, in the network's order.

    Raises:
        InvalidInputError: a pattern matches none of them; see :func:`check_patterns`.
    """
    names = [
        name
        for name, module in network.named_modules()
        if name and any(p.ndim > 1 for p in module.parameters(recurse=False))
    ]
    check_patterns(names, include, exclude)
    return names
