"""The published three-pass K, L, S loop, its errors mended: the oracle of the one-tape step.

Plain and slow on purpose: three forward passes by autograd, QR of [K|U], no shared tape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stiefel.lowrank.steps import Factors

# Weights of all layers in, loss out.
Loss = Callable[[Sequence[Tensor]], Tensor]


def three_pass_step(layers: Sequence[Factors], loss: Loss, rate: float) -> list[Factors]:
    """One gradient-descent step with augmented bases, before truncation."""
    k_steps = _descend(
        [f.left @ f.core for f in layers], rate, loss, lambda i, k: k @ layers[i].right.mT
    )
    l_steps = _descend(
        [f.right @ f.core.mT for f in layers], rate, loss, lambda i, part: layers[i].left @ part.mT
    )
    lefts = [
        torch.linalg.qr(torch.cat((k, f.left), 1)).Q for k, f in zip(k_steps, layers, strict=True)
    ]
    rights = [
        torch.linalg.qr(torch.cat((part, f.right), 1)).Q
        for part, f in zip(l_steps, layers, strict=True)
    ]
    cores = [
        (left.mT @ f.left) @ f.core @ (right.mT @ f.right).mT
        for left, f, right in zip(lefts, layers, rights, strict=True)
    ]
    cores = _descend(cores, rate, loss, lambda i, s: lefts[i] @ s @ rights[i].mT)
    return [Factors(*parts) for parts in zip(lefts, cores, rights, strict=True)]


def truncate(factors: Factors, tolerance: float) -> Factors:
    """Keep the least rank whose tail is within tolerance of the whole."""
    left, sigma, right_h = torch.linalg.svd(factors.core)
    keep = next(
        j
        for j in range(len(sigma) + 1)
        if float(sigma[j:].norm()) <= tolerance * float(sigma.norm())
    )
    return Factors(
        factors.left @ left[:, :keep],
        torch.diag(sigma[:keep]),
        factors.right @ right_h.mT[:, :keep],
    )


def _descend(
    parts: list[Tensor], rate: float, loss: Loss, weight: Callable[[int, Tensor], Tensor]
) -> list[Tensor]:
    leaves = [part.detach().requires_grad_() for part in parts]
    loss([weight(i, leaf) for i, leaf in enumerate(leaves)]).backward()
    return [(leaf - rate * leaf.grad).detach() for leaf in leaves]
