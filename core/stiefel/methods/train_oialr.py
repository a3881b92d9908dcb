"""``train.oialr``: the schedule of :mod:`stiefel.lowrank.oialr` under the training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stiefel.lowrank.convert import to_low_rank
from stiefel.lowrank.oialr import OialrSchedule
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.methods.training import run_training
from stiefel.specs.train_low_rank import TrainOialrSpec
from stiefel.training.low_rank import ScheduleStepper, low_rank_exports, low_rank_layers
from stiefel.training.naming import check_layer_names
from stiefel.training.optimizers import build_optimizer
from stiefel.training.stepper import Stepper


class OrthogonalityInformed:
    """Keeps the layers dense at first; the schedule takes them apart."""

    def attach(self, network: nn.Module, spec: TrainOialrSpec, *, steps: int) -> Stepper:
        """See :class:`stiefel.training.session.Constraint`."""
        check_layer_names(network, spec.include, spec.exclude)
        self._conversion = to_low_rank(
            network,
            include=spec.include,
            exclude=spec.exclude,
            keep_last=spec.keep_last,
            dense=True,
            evaluation="auto",
        )
        optimizer = build_optimizer(spec.optimizer, network.parameters())
        delay, period = spec.timing(steps)
        self._schedule = OialrSchedule(
            network,
            optimizer,
            delay=delay,
            period=period,
            cutoff=spec.cutoff,
            share=spec.tested_share,
            rest=spec.rest,
        )
        return ScheduleStepper(network, self._schedule)

    def exports(self, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Factored and merged."""
        return low_rank_exports(network)

    def layers(self, network: nn.Module) -> list[dict[str, Any]]:
        """Ranks, and reasons of what was skipped."""
        return low_rank_layers(self._conversion, self._schedule.ranks)


def run(spec: TrainOialrSpec, run: Run) -> Outcome:
    """Train and deliver; see :func:`stiefel.methods.training.run_training` for errors."""
    return run_training(spec, run, OrthogonalityInformed())


METHOD = Method("train.oialr", TrainOialrSpec, run)
