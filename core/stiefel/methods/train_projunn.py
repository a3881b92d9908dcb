"""``train.projunn``: the optimizer of :mod:`stiefel.unitary` under the training loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.methods.training import run_training
from stiefel.specs.train_projunn import TrainProjunnSpec
from stiefel.training.optimizers import build_optimizer
from stiefel.training.stepper import Stepper
from stiefel.training.unitary import (
    UnitaryStepper,
    build_manifold_optimizer,
    swap_layers,
    unitary_exports,
    unitary_layers,
)
from stiefel.unitary import euclidean_parameters


class Unitary:
    """Swaps layers for unitary ones, or takes those that the network has."""

    def attach(self, network: nn.Module, spec: TrainProjunnSpec, *, steps: int) -> Stepper:
        """See :class:`stiefel.training.session.Constraint`."""
        self._report = swap_layers(network, spec)
        rest = euclidean_parameters(network)
        others = build_optimizer(spec.optimizer, rest) if rest else None
        return UnitaryStepper(network, build_manifold_optimizer(network, spec), others)

    def exports(self, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        """Frames, and dense weights."""
        return unitary_exports(network)

    def layers(self, network: nn.Module) -> list[dict[str, Any]]:
        """Defects, and reasons of what was skipped."""
        return unitary_layers(network, self._report)


def run(spec: TrainProjunnSpec, run: Run) -> Outcome:
    """Train and deliver; see :func:`stiefel.methods.training.run_training` for errors."""
    return run_training(spec, run, Unitary())


METHOD = Method("train.projunn", TrainProjunnSpec, run)
