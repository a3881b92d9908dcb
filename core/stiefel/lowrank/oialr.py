"""Orthogonality-informed adaptive low-rank training (OIALR).

Bases settle early in training. So: train dense for ``delay`` steps, take W = U S V^T at full inner
size, freeze U and V, train the square core S, and every ``period`` steps turn the bases to S's
singular vectors and drop the directions whose singular value fell under ``cutoff`` of the largest.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn

from stiefel.errors import InvalidInputError
from stiefel.linalg.precision import in_whole_precision
from stiefel.lowrank import reduce
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.members import (
    Member,
    autocasts,
    check_members,
    drop_non_finite,
    trainable_layers,
)
from stiefel.lowrank.steps import Factors, rotate
from stiefel.lowrank.transition import check_finite, enter_factors
from stiefel.lowrank.transport import rotate_state
from stiefel.lowrank.truncation import RankRule, core_svd

# One test halves a layer's inner size at most, and never cuts it below this share.
LEAST_SHARE = 0.01


class Test(NamedTuple):
    """One layer's periodic test."""

    layer: str
    before: int
    after: int
    stability: float  # mean cosine between the columns of U V^T before and after; 1 is settled


class OialrReport(NamedTuple):
    """What happened in one step."""

    skipped: tuple[str, ...]  # parameters left alone because a gradient was not finite
    converted: bool  # the dense warm-up ended here
    tests: tuple[Test, ...]


class OialrSchedule:
    """Steps the optimizer and, in its time, the bases of every low-rank layer.

    Args:
        model: converted by ``to_low_rank(model, dense=True, evaluation="auto")``. Layers that
            are factored already skip the warm-up.
        optimizer: holds the layers' Parameters; its state is rotated with the bases.
        delay: dense steps before the transition.
        period: steps between tests.
        cutoff: beta; directions with sigma < beta * sigma_max go.
        share: the j-th test looks at the last ``j * share`` of the layers only, because
            layers near the output settle first.
        rest: tests that a layer sits out after it was reduced.

    Works under DistributedDataParallel when ``prepare_for_ddp(model)`` was called before
    wrapping: the decomposition of each layer is made by one process and broadcast.

    Source: Coquelin et al., arXiv 2401.08505. Unlike the authors' code, optimizer state turns
    with the bases, the weight is evaluated in factors where that is cheaper, and few layers do
    not make the first test look at all of them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        delay: int = 1000,
        period: int = 500,
        cutoff: float = 0.1,
        share: float = 0.1,
        rest: int = 0,
    ) -> None:
        if not (delay >= 0 and period >= 1 and 0 <= cutoff < 1 and 0 < share <= 1 and rest >= 0):
            raise InvalidInputError(
                f"delay={delay}, period={period}, cutoff={cutoff}, share={share}, rest={rest}",
                code="bad_schedule",
                fix="delay >= 0, period >= 1, 0 <= cutoff < 1, 0 < share <= 1, rest >= 0",
            )
        self.optimizer = optimizer
        self.delay, self.period, self.cutoff, self.share = delay, period, cutoff, share
        self.rest = rest
        self.members = [
            Member(name, layer, RankRule(), layer.rank) for name, layer in trainable_layers(model)
        ]
        check_members(self.members, optimizer)
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        self._resting = {member.name: 0 for member in self.members}
        self.count = self.tests = 0

    @property
    def ranks(self) -> dict[str, int]:
        """Inner size of every layer."""
        return {member.name: member.layer.rank for member in self.members}

    @torch.no_grad()
    @in_whole_precision
    def step(self) -> OialrReport:
        """Step the optimizer; convert or test when it is time."""
        if autocasts(self.members):
            with torch.autocast(self.members[0].layer.S.device.type, enabled=False):
                return self.step()
        if reduce.is_distributed():
            for member in self.members:
                core = member.layer.S
                core.grad = torch.zeros_like(core) if core.grad is None else core.grad
            reduce.average_([m.layer.S.grad for m in self.members if m.layer.S.grad is not None])
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        skipped = drop_non_finite(self.members, parameters, self._names)
        self.optimizer.step()
        self.count += 1
        converted = self.count >= self.delay and any(m.layer.is_dense for m in self.members)
        if converted:
            self._convert()
        due = self.count > self.delay and (self.count - self.delay) % self.period == 0
        return OialrReport(skipped, converted, self.test() if due else ())

    @torch.no_grad()
    def test(self) -> tuple[Test, ...]:
        """Turn and reduce the layers whose turn it is; :meth:`step` calls this every period."""
        self.tests += 1
        count = max(1, int(self.tests * self.share * len(self.members)))
        chosen = self.members[-count:]
        results = []
        for owner, member in enumerate(chosen):
            if self._resting[member.name] > 0:
                self._resting[member.name] -= 1
            elif not member.layer.is_dense:
                results.append(self._reduce(member, owner))
        return tuple(results)

    def state_dict(self) -> dict[str, object]:
        """Where the schedule stands; model and optimizer keep the rest."""
        return {"count": self.count, "tests": self.tests, "resting": dict(self._resting)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Resume after model and optimizer were loaded."""
        count, tests, resting = state["count"], state["tests"], state["resting"]
        assert isinstance(count, int)
        assert isinstance(tests, int)
        assert isinstance(resting, dict)
        self.count, self.tests = count, tests
        self._resting.update(resting)

    def _convert(self) -> None:
        check_finite({member.name: member.layer for member in self.members})
        for owner, member in enumerate(self.members):
            if member.layer.is_dense:
                enter_factors(member.layer, self.optimizer)
                member.layer.set_factors(Factors(*_shared(member.layer.factors, owner)))

    def _reduce(self, member: Member, owner: int) -> Test:
        layer: LowRankLayer = member.layer
        before, shape = layer.rank, layer.S.shape
        left, sigma, right_h = _shared(core_svd(layer.S.detach(), member.name), owner)
        right = right_h.mT
        stability = _stability(layer.V, left, right)
        least = max(1, int(LEAST_SHARE * min(layer.matrix_shape)), before - before // 2)
        wanted = int((sigma >= self.cutoff * sigma[..., :1]).sum(-1).amax())
        keep = min(before, max(wanted, least))
        left, sigma = left[..., :keep].contiguous(), sigma[..., :keep]
        right = right[..., :keep].contiguous()
        layer.set_factors(rotate(layer.factors, left, sigma, right))
        rotate_state(self.optimizer, layer.S, shape, left, right)
        self._resting[member.name] = self.rest if keep < before else 0
        member.rank = keep
        return Test(member.name, before, keep, stability)


def trainable_share(model: nn.Module, dense_parameters: int) -> float:
    """Trained parameters as a share of those of the dense model."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad) / dense_parameters


def _stability(right_basis: Tensor, left: Tensor, right: Tensor) -> float:
    """Mean cosine of the columns of U V^T and U P Q^T V^T, without forming either.

    Column j of the first is U v_j, so that its cosine with the second is v_j^T P Q^T v_j / |v_j|^2.
    """
    moved = (right_basis @ right) @ left.mT
    weight = right_basis.square().sum(-1)
    cosine = (moved * right_basis).sum(-1) / weight.clamp_min(torch.finfo(weight.dtype).tiny)
    return float(cosine[weight > 0].mean()) if bool((weight > 0).any()) else 1.0


def _shared(parts: tuple[Tensor, ...], owner: int) -> tuple[Tensor, ...]:
    """The owner's tensors on every process, so that rounding cannot let replicas drift apart."""
    if not reduce.is_distributed():
        return tuple(parts)
    copies = [part.contiguous() for part in parts]
    for copy in copies:
        distributed.broadcast(copy, src=owner % distributed.get_world_size())
    return tuple(copies)
