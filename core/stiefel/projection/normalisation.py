"""Absorb batch normalisation at its inference values into the layer before it.

y = gamma (W x + b - mean) / sqrt(variance + eps) + beta is again a linear layer: its rows are
scaled by gamma / sqrt(variance + eps). Layer and group normalisation depend on the input and
cannot be absorbed.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError

Absorbing = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def absorbed(
    weight: Tensor,
    bias: Tensor | None,
    *,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of the layer that includes its batch normalisation.

    Args:
        weight: ``(channels out, ...)``; bias, mean, variance, gamma, beta: ``(channels out,)``.
        bias: None counts as zero, as does ``beta``; None for ``gamma`` counts as one.
        mean: running mean.
        variance: running variance.
        gamma: scale.
        beta: shift.
        eps: as in the normalisation layer.

    Raises:
        InvalidInputError: a statistic that does not match the channels out.
    """
    if mean.shape != weight.shape[:1] or variance.shape != weight.shape[:1]:
        raise InvalidInputError(
            f"normalisation of {tuple(mean.shape)} channels cannot follow a weight "
            f"{tuple(weight.shape)}"
        )
    gain = torch.rsqrt(variance + eps) * (1 if gamma is None else gamma)
    shift = -mean if bias is None else bias - mean
    new_bias = shift * gain + (0 if beta is None else beta)
    return weight * gain.reshape(-1, *[1] * (weight.ndim - 1)), new_bias


def absorb_normalisations(network: nn.Module) -> nn.Module:
    """Return a copy of ``network`` without the batch normalisations that follow a linear layer.

    Within every ``nn.Sequential`` a batch normalisation straight after a linear or convolution
    layer becomes ``nn.Identity`` and its effect moves into that layer. In evaluation mode the
    copy computes the same function.

    Raises:
        InvalidInputError: such a normalisation keeps no running statistics.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, nn.Sequential):
            names = list(module._modules)
            for first, second in pairwise(names):
                layer, norm = module._modules[first], module._modules[second]
                if isinstance(layer, Absorbing) and isinstance(norm, BatchNorm):
                    _absorb(layer, norm, second)
                    module._modules[second] = nn.Identity()
    return network


def _absorb(layer: Absorbing, norm: BatchNorm, name: str) -> None:
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidInputError(
            f"batch normalisation {name!r} keeps no running statistics",
            fix="train it with track_running_stats=True",
        )
    with torch.no_grad():
        weight, bias = absorbed(
            layer.weight,
            layer.bias,
            mean=norm.running_mean,
            variance=norm.running_var,
            gamma=norm.weight,
            beta=norm.bias,
            eps=norm.eps,
        )
    layer.weight = nn.Parameter(weight)
    layer.bias = nn.Parameter(bias)
