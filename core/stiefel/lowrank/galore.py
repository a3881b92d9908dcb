"""GaLore: dense weights, Adam's state in a subspace of the gradients.

For a weight n x m with n <= m the state is r x m instead of n x m. The subspace is that of the
leading left singular vectors of the gradient, renewed every ``period`` steps; the rank may follow
the gradient's energy, as in AdaRankGrad, and moments are re-expressed in the new basis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.truncation import RankRule, kept_rank
from stiefel.rank_bounds import is_whole


class GaLoreAdamW(torch.optim.Optimizer):
    """AdamW whose moments for matrices live in a low-rank subspace of the gradient.

    Args:
        params: parameters or groups; what is not a matrix, or is smaller than ``rank``, gets
            ordinary AdamW.
        rank: size of the subspace, or its upper bound when ``energy`` is given.
        period: steps between renewals of the subspace.
        energy: share of the gradient's energy the subspace must hold; it may then be smaller
            than ``rank`` (AdaRankGrad). None keeps ``rank``.
        lr: step.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        weight_decay: decoupled.
        scale: factor on the update of matrices (alpha in the paper).

    A parameter whose gradient is not finite is left alone for that step, moments and subspace
    included; ``skipped_steps`` counts such updates.

    Cost: per matrix one n x m by n x r product twice a step, and one SVD every ``period`` steps.

    Source: Zhao et al., GaLore, arXiv 2403.03507; Refael et al., AdaRankGrad, arXiv 2410.17881.
    """

    _skipped = 0  # of the class, since a copied or unpickled optimizer has no __init__

    def __init__(
        self,
        params: Iterable[Any],
        *,
        rank: int = 64,
        period: int = 200,
        energy: float | None = None,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        scale: float = 1.0,
    ) -> None:
        defaults = {
            "rank": rank,
            "period": period,
            "energy": energy,
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "scale": scale,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options that cannot work and complex parameters are refused."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except InvalidInputError:
            self.param_groups.pop()
            raise

    def skipped_steps(self) -> int:
        """Return how many updates were left out because a gradient was not finite."""
        return self._skipped

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise InvalidInputError(
                        "GaLoreAdamW does not support sparse gradients",
                        code="sparse_gradient",
                        fix="leave the embedding to torch.optim.SparseAdam, or give sparse=False",
                    )
                if bool(parameter.grad.isfinite().all()):
                    self._update(parameter, parameter.grad, group)
                else:
                    self._skipped += 1
        return loss

    def _update(self, parameter: nn.Parameter, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        projected = parameter.ndim == 2 and group["rank"] < min(parameter.shape)
        wide = parameter.shape[0] <= parameter.shape[-1]
        if projected:
            grad = grad if wide else grad.T
            if state.get("step", 0) % group["period"] == 0 or state.get("due", False):
                # A gradient of zeros, as behind a layer that starts at zero, has no directions:
                # the subspace is due until one comes, and moments stay in the one they have.
                state["due"] = not bool(grad.any())
                if "basis" not in state or not state["due"]:
                    _renew(state, grad, group)
            grad = state["basis"].T @ grad
        if "exp_avg" not in state:
            state.update(exp_avg=torch.zeros_like(grad), exp_avg_sq=torch.zeros_like(grad))
            state.setdefault("step", 0)
        update = _adam(state, grad, group)
        if projected:
            update = group["scale"] * (state["basis"] @ update)
            update = update if wide else update.T
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def _check_group(group: dict[str, Any]) -> None:
    """Raise on options that cannot work and on complex parameters."""
    lr, betas, energy = group["lr"], group["betas"], group["energy"]
    if not lr >= 0 or not all(0 <= beta < 1 for beta in betas):
        raise InvalidInputError(f"lr={lr}, betas={betas}", fix="lr >= 0, betas in [0, 1)")
    for name in ("rank", "period"):
        if not is_whole(group[name]) or group[name] < 1:
            raise InvalidInputError(
                f"{name}={group[name]!r}",
                code="bad_subspace",
                fix="give a whole number of at least 1",
            )
    if energy is not None and not 0 < energy <= 1:
        raise InvalidInputError(f"energy={energy}", code="bad_subspace", fix="0 < energy <= 1")
    for name in ("eps", "weight_decay"):
        if not group[name] >= 0:
            raise InvalidInputError(f"{name}={group[name]}", fix="give at least 0")
    for parameter in group["params"]:
        if parameter.is_complex():
            raise InvalidInputError(
                f"a complex parameter {tuple(parameter.shape)}",
                code="complex_parameter",
                fix="give complex parameters to torch.optim.AdamW",
            )


def _adam(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> Tensor:
    first, second = group["betas"]
    state["step"] += 1
    state["exp_avg"].lerp_(grad, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(grad, grad, value=1 - second)
    mean = state["exp_avg"] / (1 - first ** state["step"])
    spread = (state["exp_avg_sq"] / (1 - second ** state["step"])).sqrt_()
    update: Tensor = mean / spread.add_(group["eps"])
    return update


def _renew(state: dict[str, Any], grad: Tensor, group: dict[str, Any]) -> None:
    """Take the gradient's leading left directions and carry the moments over."""
    left, sigma, _ = torch.linalg.svd(grad.float(), full_matrices=False)
    rank = group["rank"]
    if group["energy"] is not None:
        rank = kept_rank(sigma, RankRule((1 - group["energy"]) ** 0.5, most=rank), if_zero=1)
    # One layout, or a state that was saved and loaded would round differently.
    basis = left[:, :rank].to(grad.dtype).contiguous()
    if "basis" in state:
        turn = basis.T @ state["basis"]
        state["exp_avg"] = turn @ state["exp_avg"]
        known = state["exp_avg_sq"]
        state["exp_avg_sq"] = turn.square() @ known
        # Of what the old subspace did not hold, second moments know nothing. Taken as zero they
        # make the next steps up to 0.1 / sqrt(0.001) times as long; so what stood at the same
        # place of the spectrum, which changes less than its directions do, stands in.
        unknown = (1 - turn.square().sum(1, keepdim=True)).clamp_min(0)
        places = torch.arange(rank, device=grad.device).clamp_max(len(known) - 1)
        state["exp_avg_sq"] += unknown * known[places]
    state["basis"] = basis
