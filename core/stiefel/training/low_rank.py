"""Low-rank training as steppers: DLRT's integrator and OIALR's schedule behind one seam."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.lowrank.convert import Conversion
from stiefel.lowrank.export import export, merge
from stiefel.lowrank.integrator import LowRankIntegrator
from stiefel.lowrank.oialr import OialrSchedule, trainable_share
from stiefel.training.stepper import base_rates, set_rate


class IntegratorStepper:
    """DLRT: every step turns the bases or steps the cores, and the optimizer with them.

    Args:
        integrator: steps all parameters.
        freeze_from: share of the run after which ranks stay as they are.
    """

    def __init__(self, integrator: LowRankIntegrator, *, freeze_from: float) -> None:
        self._integrator, self._freeze_from = integrator, freeze_from
        self._rates = base_rates(integrator.optimizer)

    def zero_grad(self) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._integrator.zero_grad()

    def step(
        self, *, rate: float, clip_norm: float | None, scaler: torch.amp.GradScaler
    ) -> tuple[str, ...]:
        """See :class:`stiefel.training.stepper.Stepper`; the spec refuses scaled gradients."""
        set_rate(self._integrator.optimizer, self._rates, rate)
        self._integrator.clip = clip_norm
        return self._integrator.step().skipped

    def milestone(self, share: float) -> None:
        """Freeze the ranks when it is time."""
        if share >= self._freeze_from:
            self._integrator.freeze_ranks()

    def measures(self) -> Mapping[str, float]:
        """Rank of every layer."""
        return {f"rank/{name}": float(rank) for name, rank in self._integrator.ranks.items()}

    def finish(self) -> None:
        """End the phase: every rank within its rule."""
        self._integrator.finish()

    def state_dict(self) -> dict[str, Any]:
        """The integrator's and the optimizer's state."""
        return {
            "integrator": self._integrator.state_dict(),
            "optimizer": self._integrator.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._integrator.load_state_dict(state["integrator"])
        self._integrator.optimizer.load_state_dict(state["optimizer"])


class ScheduleStepper:
    """OIALR: an ordinary optimizer on the cores; bases turn and shrink every period."""

    def __init__(self, network: nn.Module, schedule: OialrSchedule) -> None:
        self._network, self._schedule = network, schedule
        self._dense = sum(p.numel() for p in network.parameters())  # nothing is taken apart yet
        self._rates = base_rates(schedule.optimizer)
        self._stability: dict[str, float] = {}

    def zero_grad(self) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._schedule.optimizer.zero_grad()

    def step(
        self, *, rate: float, clip_norm: float | None, scaler: torch.amp.GradScaler
    ) -> tuple[str, ...]:
        """See :class:`stiefel.training.stepper.Stepper`; the spec refuses scaled gradients."""
        set_rate(self._schedule.optimizer, self._rates, rate)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), clip_norm)
        report = self._schedule.step()
        self._stability |= {test.layer: test.stability for test in report.tests}
        return report.skipped

    def milestone(self, share: float) -> None:
        """The schedule counts its own steps."""

    def measures(self) -> Mapping[str, float]:
        """Trained share, rank of every layer, how settled its bases were at their last test."""
        share = {"trainable_share": trainable_share(self._network, self._dense)}
        ranks = {f"rank/{name}": float(rank) for name, rank in self._schedule.ranks.items()}
        stability = {f"stability/{name}": value for name, value in self._stability.items()}
        return share | ranks | stability

    def finish(self) -> None:
        """Nothing is left open between steps."""

    def state_dict(self) -> dict[str, Any]:
        """The schedule's and the optimizer's state."""
        return {
            "schedule": self._schedule.state_dict(),
            "optimizer": self._schedule.optimizer.state_dict(),
            "stability": self._stability,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._schedule.load_state_dict(state["schedule"])
        self._schedule.optimizer.load_state_dict(state["optimizer"])
        self._stability = dict(state["stability"])


def low_rank_exports(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Factors (``….factor_out``, ``….factor_in``) and dense weights of the same function."""
    factored, merged = copy.deepcopy(network), copy.deepcopy(network)
    export(factored, form="factored")
    merge(merged)
    return {
        "model.safetensors": dict(merged.state_dict()),
        "model.factored.safetensors": dict(factored.state_dict()),
    }


def low_rank_layers(conversion: Conversion, ranks: Mapping[str, int]) -> list[dict[str, Any]]:
    """One row per layer: its rank, or why it was left alone."""
    rows: list[dict[str, Any]] = [{"name": name, "rank": rank} for name, rank in ranks.items()]
    return rows + [{"name": item.name, "skipped": item.reason} for item in conversion.skipped]
