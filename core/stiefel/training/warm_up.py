"""Dense training that watches the ranks, then factors: DLRT after Cuttlefish's warm-up."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from stiefel.lowrank.oialr import OialrSchedule
from stiefel.lowrank.transition import CuttlefishSwitch
from stiefel.specs.train_low_rank import WarmUp
from stiefel.training.low_rank import IntegratorStepper, ScheduleStepper
from stiefel.training.stepper import Stepper, base_rates, set_rate


class WarmUpStepper:
    """Two steppers, one after the other; see :class:`stiefel.training.stepper.Stepper`.

    Args:
        network: converted, its low-rank layers still dense.
        optimizer: of all parameters; the layers' state is carried into the factors.
        spec: when to switch.
        steps: of the whole run.
        then: makes the stepper of the factored network, once its layers are factored.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        spec: WarmUp,
        *,
        steps: int,
        then: Callable[[], IntegratorStepper],
    ) -> None:
        self._network, self._optimizer, self._spec, self._then = network, optimizer, spec, then
        self._latest = max(1, int(spec.latest * steps))
        self._rates = base_rates(optimizer)
        self._switch = CuttlefishSwitch(
            network, slope=spec.slope, window=spec.window, share=spec.rank_share
        )
        self._count = 0
        self._now: Stepper = self._dense()

    def _dense(self) -> Stepper:
        """Dense steps: those of an OIALR schedule whose transition never comes."""
        schedule = OialrSchedule(self._network, self._optimizer, delay=sys.maxsize)
        return ScheduleStepper(self._network, schedule)

    def _follow(self) -> None:
        # The next stepper takes the present rates for its base.
        set_rate(self._optimizer, self._rates, 1.0)
        self._now = self._then()

    @property
    def _waiting(self) -> bool:
        return not isinstance(self._now, IntegratorStepper)

    def zero_grad(self) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._now.zero_grad()

    def step(
        self, *, rate: float, clip_norm: float | None, scaler: torch.amp.GradScaler
    ) -> tuple[str, ...]:
        """One step; while dense, look at the ranks when it is time and switch when they settled."""
        skipped = self._now.step(rate=rate, clip_norm=clip_norm, scaler=scaler)
        self._count += 1
        if self._waiting:
            settled = self._count % self._spec.period == 0 and self._switch.observe()
            if settled or self._count >= self._latest:
                self._switch.apply(self._optimizer)
                self._follow()
        return skipped

    def milestone(self, share: float) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._now.milestone(share)

    def measures(self) -> Mapping[str, float]:
        """Of the stepper at work, and whether that is still the dense one."""
        return {**self._now.measures(), "dense": float(self._waiting)}

    def finish(self) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        self._now.finish()

    def state_dict(self) -> dict[str, Any]:
        """Where the warm-up stands, and the state of the stepper at work."""
        return {
            "count": self._count,
            "waiting": self._waiting,
            "switch": self._switch.state_dict(),
            "now": self._now.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`stiefel.training.stepper.Stepper`; a network may go back to dense."""
        self._count = state["count"]
        self._switch.load_state_dict(state["switch"])
        if state["waiting"]:
            set_rate(self._optimizer, self._rates, 1.0)
            self._now = self._dense()
        else:
            self._follow()
        self._now.load_state_dict(state["now"])
