"""Where a backward pass takes the gradient of a parameter, for layers that keep part of it."""

from __future__ import annotations

from typing import Any, Literal

import torch

Destination = Literal["nowhere", "grad", "caller"]


def destination(ctx: Any, index: int) -> Destination:
    """Where the backward pass under way takes the gradient of input ``index`` of ``ctx``.

    Returns:
        ``grad``: the pass adds it to ``.grad``. ``nowhere``: the input is frozen, or was left out
        of what ``torch.autograd.grad`` or ``backward(inputs=...)`` asked for; such a pass goes
        through the layer all the same. ``caller``: ``torch.autograd.grad`` was asked for it.

    Cost: none to speak of. Call it inside ``backward`` of the autograd function only.
    """
    node = ctx.next_functions[index][0]
    if node is None:
        return "nowhere"
    try:
        return "grad" if torch._C._will_engine_execute_node(node) else "nowhere"
    except RuntimeError:  # raised for a leaf that is itself what autograd.grad was asked for
        return "caller"
