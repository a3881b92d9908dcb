"""From the dense weight to factors in the middle of training, optimizer state included."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.linalg.precision import in_whole_precision
from stiefel.lowrank.initial import spectral_factors
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.transport import rotate_state
from stiefel.rank_bounds import check_rank


@torch.no_grad()
@in_whole_precision
def enter_factors(
    layer: LowRankLayer, optimizer: torch.optim.Optimizer | None = None, *, rank: int | None = None
) -> None:
    """Turn a dense layer's weight into U S V^T of the given rank (default: full).

    The optimizer's state for the weight becomes its state for the core: m to U^T m V and v to
    (U * U)^T v (V * V), with Adam's counter kept. The layer's Parameter stays the same object.

    Raises:
        InvalidInputError: the layer is factored already, the rank is out of range, or the
            weight is not finite.

    Cost: one SVD of n x m.
    """
    if not layer.is_dense:
        raise InvalidInputError("the layer is factored already", code="already_factored")
    n, m = layer.matrix_shape
    rank = min(n, m) if rank is None else rank
    check_rank(rank, n, m)
    shape = layer.S.shape
    factors = spectral_factors(layer.S, rank)
    layer.set_factors(factors)
    if optimizer is not None:
        rotate_state(optimizer, layer.S, shape, factors.left, factors.right)


def check_finite(layers: Mapping[str, LowRankLayer]) -> None:
    """Raise, before any layer is changed, where a weight that is to be factored is not finite."""
    for name, layer in layers.items():
        if not bool(layer.S.detach().isfinite().all()):
            raise InvalidInputError(
                f"the weight of {name!r} holds NaN or infinity",
                code="non_finite_weights",
                tensor=name,
                fix="lower the learning rate, or resume from an earlier checkpoint",
            )


def effective_rank(layer: LowRankLayer) -> float:
    """The stable rank ||W||_F^2 / ||W||_2^2, averaged over groups; 0 for a zero weight."""
    sigma = torch.linalg.svdvals(layer.S.detach())
    energy = sigma.square().sum(-1)
    top = sigma[..., 0].square()
    return float(torch.where(top > 0, energy / top.clamp_min(1e-38), 0.0).mean())


class CuttlefishSwitch:
    """Watches dense layers during warm-up and tells when, and at which rank, to factor them.

    The rank of a layer is its stable rank, scaled so that the start of training counts as full
    rank. When no layer's estimate moves by more than ``slope`` per observation any longer,
    averaged over ``window`` observations, the switch is due.

        switch = CuttlefishSwitch(model)
        for epoch in ...:
            train_one_epoch()
            if switch.observe():
                switch.apply(optimizer); break

    Args:
        model: with low-rank layers that are still dense.
        slope: largest change per observation that counts as stable.
        window: observations to average over.
        share: rank at most this share of the smaller dimension.

    Source: Wang et al., Cuttlefish, MLSys 2023, arXiv 2305.02538.
    """

    def __init__(
        self, model: nn.Module, *, slope: float = 0.1, window: int = 3, share: float = 0.5
    ) -> None:
        self.layers: Mapping[str, LowRankLayer] = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, LowRankLayer) and module.is_dense
        }
        if not self.layers:
            raise InvalidInputError(
                "no low-rank layer is dense",
                code="no_dense_layer",
                fix="convert with to_low_rank(model, dense=True)",
            )
        self.slope, self.window, self.share = slope, window, share
        self._scale = {
            name: min(layer.matrix_shape) / max(effective_rank(layer), 1.0)
            for name, layer in self.layers.items()
        }
        self.history: list[dict[str, float]] = [self._estimate()]

    def observe(self) -> bool:
        """Record the ranks, once per epoch or so; true once they have settled."""
        self.history.append(self._estimate())
        if len(self.history) <= self.window:
            return False
        last, before = self.history[-1], self.history[-1 - self.window]
        return all(abs(last[k] - before[k]) / self.window <= self.slope for k in last)

    @property
    def ranks(self) -> dict[str, int]:
        """The rank each layer would get now."""
        return {
            name: max(1, min(round(value), int(self.share * min(self.layers[name].matrix_shape))))
            for name, value in self.history[-1].items()
        }

    def apply(self, optimizer: torch.optim.Optimizer | None = None) -> dict[str, int]:
        """Factor every watched layer at its rank and carry the optimizer's state along."""
        check_finite(self.layers)
        ranks = self.ranks
        for name, layer in self.layers.items():
            enter_factors(layer, optimizer, rank=ranks[name])
        return ranks

    def state_dict(self) -> dict[str, Any]:
        """What has been observed."""
        return {"scale": dict(self._scale), "history": [dict(seen) for seen in self.history]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume the observation of the same layers."""
        self._scale = dict(state["scale"])
        self.history = [dict(seen) for seen in state["history"]]

    def _estimate(self) -> dict[str, float]:
        check_finite(self.layers)
        return {
            name: self._scale[name] * effective_rank(layer) for name, layer in self.layers.items()
        }
