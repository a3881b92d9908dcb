"""Activations that a backward pass leaves for a later step, which must find them as they were.

They are the caller's own memory, not copies. What autograd saves it checks in the backward pass;
nothing checks what is read after it, unless the version of the tensor is noted. Writes that torch
does not count, through ``.data``, numpy or a replayed CUDA graph, go unseen here as they do there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stiefel.errors import InvalidInputError


class Kept:
    """One tensor and the version in which it was kept; views share that of their base."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, _version(tensor)

    @property
    def overwritten(self) -> bool:
        """Whether an operation in place has changed it since."""
        return _version(self.tensor) != self.version

    def __getstate__(self) -> dict[str, Any]:
        # A copy counts its versions anew.
        return {"tensor": self.tensor, "overwritten": self.overwritten}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.tensor = state["tensor"]
        self.version = -1 if state["overwritten"] else _version(self.tensor)


def own(x: Tensor) -> Tensor:
    """``x``, or a copy of what views a Parameter: optimizers may step it before it is read."""
    base = x if x._base is None else x._base
    return x.clone() if isinstance(base, nn.Parameter) else x


def overwritten_input(layer: str) -> InvalidInputError:
    """What to raise once the input of ``layer`` is no more what its gradient was taken at."""
    return InvalidInputError(
        f"the input of {layer} was overwritten after the backward pass; the step needs it",
        code="overwritten_input",
        fix="step before a buffer is filled again, or pass the layer a copy: layer(buffer.clone())",
    )


def _version(x: Tensor) -> int:
    return 0 if x.is_inference() else x._version
