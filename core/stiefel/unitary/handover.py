"""How a layer hands its gradient to the optimizer as factors, never as a matrix.

``ProjUNN`` opens an inbox on each of its parameters. A layer whose parameter has one puts
``Gradient(a, b, products)`` into it in backward, as long as the rank stays small, and returns
no dense gradient. A parameter without an inbox (another optimizer, a copied model, a process
group that averages dense gradients) gets an ordinary dense gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from stiefel.kept import Kept, overwritten_input
from stiefel.unitary.gradients import Gradient
from stiefel.unitary.rank_k_update import Products

# Beyond this share of p the dense gradient and a sketch of it are cheaper.
LARGEST_SHARE = 4
_NAME = "_stiefel_inbox"


class _Waiting(NamedTuple):
    gradient: Gradient
    a: Kept  # one of the two is a view of the layer's input
    b: Kept


def open_inbox(parameter: Tensor) -> None:
    """Let layers hand over factors for ``parameter``."""
    if not hasattr(parameter, _NAME):
        setattr(parameter, _NAME, [])


def close_inbox(parameter: Tensor) -> None:
    """Make layers form dense gradients for ``parameter`` again."""
    if hasattr(parameter, _NAME):
        delattr(parameter, _NAME)


def accepts(parameter: Tensor, rank: int) -> bool:
    """Whether a gradient of this rank should be handed over as factors."""
    inbox = getattr(parameter, _NAME, None)
    if inbox is None or _averages_dense_gradients():
        return False
    rank += sum(waiting.gradient.a.shape[-1] for waiting in inbox)
    return bool(LARGEST_SHARE * rank <= parameter.shape[-1])


def put(parameter: Tensor, gradient: Gradient) -> None:
    """Add one backward pass's factors, which may be views of what the layer saw."""
    waiting = _Waiting(gradient, Kept(gradient.a), Kept(gradient.b))
    getattr(parameter, _NAME).append(waiting)


def pending(parameter: Tensor) -> Gradient | None:
    """Return what the inbox holds as one gradient, the ranks added up, or None.

    Raises:
        InvalidInputError: the layer's input was overwritten since its backward pass.
    """
    inbox: list[_Waiting] = getattr(parameter, _NAME, [])
    if not inbox:
        return None
    if any(waiting.a.overwritten or waiting.b.overwritten for waiting in inbox):
        raise overwritten_input(f"a layer with a frame {tuple(parameter.shape)}")
    gradients = [waiting.gradient for waiting in inbox]
    if len(gradients) == 1:
        return gradients[0]
    a = torch.cat([gradient.a for gradient in gradients], -1)
    b = torch.cat([gradient.b for gradient in gradients], -1)
    products = [gradient.products for gradient in gradients if gradient.products is not None]
    if len(products) < len(gradients):
        return Gradient(a, b)
    Wb = torch.cat([known.Wb for known in products], -1)
    return Gradient(a, b, Products(Wb, torch.cat([known.Wa for known in products], -1)))


def clear(parameter: Tensor) -> None:
    """Forget pending factors."""
    getattr(parameter, _NAME, []).clear()


def _averages_dense_gradients() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
