"""What turns gradients into new weights: the seam between the loop and a method's mathematics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn


class Stepper(Protocol):
    """Owns every parameter of a network for the length of a run."""

    def zero_grad(self) -> None:
        """Drop all gradients."""

    def step(
        self, *, rate: float, clip_norm: float | None, scaler: torch.amp.GradScaler
    ) -> tuple[str, ...]:
        """One update from the present gradients; ``rate`` is the schedule's factor.

        Returns:
            Names of the parameters left alone because their gradient was not finite.
        """

    def milestone(self, share: float) -> None:
        """Hear that ``share`` of all steps is done (0 at the start), before each step."""

    def measures(self) -> Mapping[str, float]:
        """What is worth a curve: ranks, defects, shares. Called at evaluations."""

    def finish(self) -> None:
        """Bring the network into its final form."""

    def state_dict(self) -> dict[str, Any]:
        """Everything that the network's own state dict does not hold."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume; the network has been loaded before."""


class PlainStepper:
    """An ordinary optimizer for every parameter: the unconstrained baseline."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._network, self._optimizer = network, optimizer
        self._rates = base_rates(optimizer)

    def zero_grad(self) -> None:
        """See :class:`Stepper`."""
        self._optimizer.zero_grad()

    def step(
        self, *, rate: float, clip_norm: float | None, scaler: torch.amp.GradScaler
    ) -> tuple[str, ...]:
        """See :class:`Stepper`; non-finite gradients are left to the loss check."""
        set_rate(self._optimizer, self._rates, rate)
        scaler.unscale_(self._optimizer)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._network.parameters(), clip_norm)
        scaler.step(self._optimizer)
        scaler.update()
        return ()

    def milestone(self, share: float) -> None:
        """Nothing changes on the way."""

    def measures(self) -> Mapping[str, float]:
        """Nothing of its own."""
        return {}

    def finish(self) -> None:
        """The network is final as it is."""

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state."""
        return {"optimizer": self._optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Stepper`."""
        self._optimizer.load_state_dict(state["optimizer"])


def base_rates(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of every group before any schedule."""
    return [group["lr"] for group in optimizer.param_groups]


def set_rate(optimizer: torch.optim.Optimizer, rates: list[float], factor: float) -> None:
    """Set every group's learning rate to ``factor`` times its base."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = factor * rate
