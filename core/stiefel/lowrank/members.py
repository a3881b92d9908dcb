"""Which layers an integrator cares for, and what it refuses to do to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.galore import GaLoreAdamW
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.steps import Gradients
from stiefel.lowrank.truncation import RankRule

#: Their state has no law by which it could be carried to other bases.
UNFIT = (
    torch.optim.Adadelta,
    torch.optim.Adafactor,
    torch.optim.LBFGS,
    torch.optim.Rprop,
    torch.optim.SparseAdam,
    GaLoreAdamW,
)


@dataclass
class Member:
    """One low-rank layer under the integrator's care."""

    name: str
    layer: LowRankLayer
    rule: RankRule
    rank: int  # at the start of the phase
    phases: int = 0
    trained: bool = False  # whether the layer had a gradient in this phase

    def state_dict(self) -> dict[str, Any]:
        """Where the layer stands; its factors are the model's."""
        return {
            "rank": self.rank,
            "phases": self.phases,
            "trained": self.trained,
            "tolerance": self.rule.tolerance,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave; early versions saved the first two alone."""
        self.rank, self.phases = int(state["rank"]), int(state["phases"])
        self.trained = bool(state.get("trained", True))
        tolerance = float(state.get("tolerance", self.rule.tolerance))
        self.rule = replace(self.rule, tolerance=tolerance)


def trainable_layers(model: nn.Module) -> list[tuple[str, LowRankLayer]]:
    """Every low-rank layer whose core is trained, by name; frozen ones are left alone."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, LowRankLayer) and module.S.requires_grad
    ]


def check_members(members: list[Member], optimizer: torch.optim.Optimizer) -> None:
    """Raise on layers that cannot be integrated with this optimizer."""
    if isinstance(optimizer, UNFIT):
        raise InvalidInputError(
            f"the state of {type(optimizer).__name__} does not follow a basis that turns",
            code="unsupported_optimizer",
            fix="use SGD, Adam, AdamW, NAdam, RMSprop or Adagrad",
        )
    if not members:
        raise InvalidInputError(
            "the model holds no trainable low-rank layer",
            code="no_low_rank_layer",
            fix="convert it first: to_low_rank(model, rank=...)",
        )
    held = {p for group in optimizer.param_groups for p in group["params"]}
    owner: dict[nn.Parameter, str] = {}
    for member in members:
        core = member.layer.S
        if core in owner:
            raise InvalidInputError(
                f"layers {owner[core]!r} and {member.name!r} share one core",
                code="tied_core",
                tensor=member.name,
                fix="share the module itself, or untie the layers",
            )
        owner[core] = member.name
        if core.dtype not in (torch.float32, torch.float64):
            raise InvalidInputError(
                f"the factors of {member.name!r} are {core.dtype}",
                code="half_precision_factors",
                tensor=member.name,
                fix="keep float32 factors and compute under torch.autocast",
            )
        if core not in held:
            raise InvalidInputError(
                f"the optimizer does not hold the core of {member.name!r}",
                code="core_not_in_optimizer",
                tensor=member.name,
                fix="build the optimizer on model.parameters() after the conversion",
            )


def autocasts(members: Sequence[Member]) -> bool:
    """Whether a step called now would round products of factors to half precision."""
    return torch.is_autocast_enabled(members[0].layer.S.device.type)


def rank_rule(
    layer: LowRankLayer, tolerance: float, relative: bool, least: int | None, most: int | None
) -> RankRule:
    """Return the rule for one layer: bounds fitted to its size, 1 % and at least 2 by default."""
    if any(bound is not None and bound < 1 for bound in (least, most)):
        raise InvalidInputError(f"rank bounds {least} and {most}", fix="a rank is 1 or more")
    size = min(layer.matrix_shape)
    lower = min(size, max(2, math.ceil(0.01 * size))) if least is None else min(least, size)
    upper = most
    lower = lower if upper is None or least is not None else min(lower, upper)
    return RankRule(tolerance, relative, lower, upper)


def grown_rule(member: Member) -> RankRule:
    """Return the member's rule for ranks that never fall; its upper bound still holds."""
    rule = member.rule
    least = max(rule.least, member.rank)
    return replace(rule, least=least if rule.most is None else min(least, rule.most))


def drop_non_finite(
    members: Sequence[Member],
    parameters: Sequence[nn.Parameter],
    names: Mapping[nn.Parameter, str],
) -> tuple[str, ...]:
    """Remove every gradient that would corrupt its parameter, and name the parameters.

    A low-rank layer is left alone as a whole: core, bias and bases. While all is well this
    costs one norm per gradient and one synchronisation.
    """
    gradients = [_entries(p.grad) for p in parameters if p.grad is not None]
    gradients += [part for member in members for part in _taped(member.layer)]
    if not gradients:
        return ()
    # A sum that overflows although every entry is finite only costs the closer look below.
    if math.isfinite(float(torch.stack(torch._foreach_norm(gradients)).sum())):
        return ()
    bad = {p for p in parameters if p.grad is not None and not _finite(p.grad)}
    for member in members:
        layer = member.layer
        finite = all(bool(part.isfinite().all()) for part in _taped(layer))
        if layer.S in bad or layer.bias in bad or not finite:
            bad |= {p for p in (layer.S, layer.bias) if p is not None}
            layer.tape = None
    for parameter in bad:
        parameter.grad = None
    return tuple(sorted(names.get(p, "a parameter outside the model") for p in bad))


def _entries(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def _finite(gradient: Tensor) -> bool:
    return bool(_entries(gradient).isfinite().all())


def check_state(member: Member, optimizer: torch.optim.Optimizer) -> None:
    """Raise where the optimizer's state belongs to another rank than the layer has."""
    core = member.layer.S
    for key, value in optimizer.state.get(core, {}).items():
        if isinstance(value, Tensor) and value.ndim >= 2 and value.shape != core.shape:
            raise InvalidInputError(
                f"{key} of {member.name!r} is {tuple(value.shape)}, its core "
                f"{tuple(core.shape)}: model and optimizer come from different steps",
                code="state_mismatch",
                tensor=member.name,
                fix="load the states of optimizer and integrator that belong to the model",
            )


def taped_gradients(layer: LowRankLayer) -> Gradients | None:
    """What the passes since the last step left on the layer's tape; None if it took no part."""
    tape = layer.tape
    if tape is None or tape.grad_k is None or tape.grad_l is None or layer.S.grad is None:
        return None
    return Gradients(tape.grad_k, tape.grad_l, layer.S.grad)


def _taped(layer: LowRankLayer) -> list[Tensor]:
    tape = layer.tape
    return [] if tape is None else [t for t in (tape.grad_k, tape.grad_l) if t is not None]
