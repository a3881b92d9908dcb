"""``train.dlrt``: the integrator of :mod:`stiefel.lowrank` under the training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stiefel.lowrank.convert import to_low_rank
from stiefel.lowrank.integrator import LowRankIntegrator
from stiefel.lowrank.layer import LowRankLayer
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.methods.training import run_training
from stiefel.specs.train_low_rank import TrainDlrtSpec
from stiefel.training.low_rank import IntegratorStepper, low_rank_exports, low_rank_layers
from stiefel.training.naming import check_layer_names
from stiefel.training.optimizers import build_optimizer
from stiefel.training.stepper import Stepper
from stiefel.training.warm_up import WarmUpStepper


class DynamicalLowRank:
    """Swaps layers for U S V^T and keeps the account of it."""

    def attach(self, network: nn.Module, spec: TrainDlrtSpec, *, steps: int) -> Stepper:
        """See :class:`stiefel.training.session.Constraint`."""
        check_layer_names(network, spec.include, spec.exclude)
        self._network, self._spec = network, spec
        self._conversion = to_low_rank(
            network,
            spec.initial_rank,
            include=spec.include,
            exclude=spec.exclude,
            keep_last=spec.keep_last,
            keep_norm=spec.weights is None,
            dense=spec.warm_up is not None,
        )
        self._optimizer = build_optimizer(spec.optimizer, network.parameters())
        if spec.warm_up is None:
            return self._factored()
        return WarmUpStepper(
            network, self._optimizer, spec.warm_up, steps=steps, then=self._factored
        )

    def _factored(self) -> IntegratorStepper:
        spec = self._spec
        integrator = LowRankIntegrator(
            self._network,
            self._optimizer,
            tolerance=spec.truncation_tolerance,
            relative=spec.relative,
            adaptive=spec.adaptive,
            min_rank=spec.min_rank,
            max_rank=spec.max_rank,
            phase=spec.phase,
            variant=spec.variant,
            grow_only=spec.grow_only,
        )
        return IntegratorStepper(integrator, freeze_from=spec.freeze_from)

    def exports(self, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Factored and merged."""
        return low_rank_exports(network)

    def layers(self, network: nn.Module) -> list[dict[str, Any]]:
        """Ranks, and reasons of what was skipped."""
        found = {name: m for name, m in network.named_modules() if isinstance(m, LowRankLayer)}
        return low_rank_layers(self._conversion, {name: m.rank for name, m in found.items()})


def run(spec: TrainDlrtSpec, run: Run) -> Outcome:
    """Train and deliver; see :func:`stiefel.methods.training.run_training` for errors."""
    return run_training(spec, run, DynamicalLowRank())


METHOD = Method("train.dlrt", TrainDlrtSpec, run)
