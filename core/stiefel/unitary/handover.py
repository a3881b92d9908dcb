"""How a layer hands its gradient to the optimizer as factors, never as a matrix.

``ProjUNN`` opens an inbox on each of its parameters. A layer whose parameter has one puts
``Gradient(a, b, products)`` into it in backward, as long as the rank stays small, and returns
no dense gradient. A parameter without an inbox (another optimizer, a copied model, a process
group that averages dense gradients) gets an ordinary dense gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stiefel.unitary.gradients import Gradient
from stiefel.unitary.rank_k_update import Products

# Beyond this share of p the dense gradient and a sketch of it are cheaper.
LARGEST_SHARE = 4
_NAME = "_stiefel_inbox"


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
    waiting = sum(gradient.a.shape[-1] for gradient in inbox)
    return bool(LARGEST_SHARE * (waiting + rank) <= parameter.shape[-1])


def put(parameter: Tensor, gradient: Gradient) -> None:
    """Add one backward pass's factors."""
    getattr(parameter, _NAME).append(gradient)


def pending(parameter: Tensor) -> Gradient | None:
    """Return what the inbox holds as one gradient, the ranks added up, or None."""
    inbox: list[Gradient] = getattr(parameter, _NAME, [])
    if not inbox:
        return None
    if len(inbox) == 1:
        return inbox[0]
    a = torch.cat([gradient.a for gradient in inbox], -1)
    b = torch.cat([gradient.b for gradient in inbox], -1)
    products = [gradient.products for gradient in inbox if gradient.products is not None]
    if len(products) < len(inbox):
        return Gradient(a, b)
    Wb = torch.cat([known.Wb for known in products], -1)
    return Gradient(a, b, Products(Wb, torch.cat([known.Wa for known in products], -1)))


def clear(parameter: Tensor) -> None:
    """Forget pending factors."""
    getattr(parameter, _NAME, []).clear()


def _averages_dense_gradients() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
