"""``train.dlrt``: the integrator of :mod:`stiefel.lowrank` under the training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stiefel.lowrank.convert import to_low_rank
from stiefel.lowrank.integrator import LowRankIntegrator
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.methods.training import run_training
from stiefel.specs.train_low_rank import TrainDlrtSpec
from stiefel.training.low_rank import IntegratorStepper, low_rank_exports, low_rank_layers
from stiefel.training.naming import check_layer_names
from stiefel.training.optimizers import build_optimizer
from stiefel.training.stepper import Stepper


class DynamicalLowRank:
    """Swaps layers for U S V^T and keeps the account of it."""

    def attach(self, network: nn.Module, spec: TrainDlrtSpec, *, steps: int) -> Stepper:
        """See :class:`stiefel.training.session.Constraint`."""
        check_layer_names(network, spec.include, spec.exclude)
        self._conversion = to_low_rank(
            network,
            spec.initial_rank,
            include=spec.include,
            exclude=spec.exclude,
            keep_last=spec.keep_last,
            keep_norm=spec.weights is None,
        )
        optimizer = build_optimizer(spec.optimizer, network.parameters())
        self._integrator = LowRankIntegrator(
            network,
            optimizer,
            tolerance=spec.truncation_tolerance,
            adaptive=spec.adaptive,
            min_rank=spec.min_rank,
            max_rank=spec.max_rank,
            phase=spec.phase,
            variant=spec.variant,
        )
        return IntegratorStepper(self._integrator, freeze_from=spec.freeze_from)

    def exports(self, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Factored and merged."""
        return low_rank_exports(network)

    def layers(self, network: nn.Module) -> list[dict[str, Any]]:
        """Ranks, and reasons of what was skipped."""
        return low_rank_layers(self._conversion, self._integrator.ranks)


def run(spec: TrainDlrtSpec, run: Run) -> Outcome:
    """Train and deliver; see :func:`stiefel.methods.training.run_training` for errors."""
    return run_training(spec, run, DynamicalLowRank())


METHOD = Method("train.dlrt", TrainDlrtSpec, run)
