"""``train.dense``: the loop with an ordinary optimizer for every parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.methods.training import run_training
from stiefel.specs.train_dense import TrainDenseSpec
from stiefel.training.optimizers import build_optimizer
from stiefel.training.stepper import PlainStepper, Stepper


class Unconstrained:
    """Leaves every layer as it is."""

    def attach(self, network: nn.Module, spec: TrainDenseSpec, *, steps: int) -> Stepper:
        """See :class:`stiefel.training.session.Constraint`."""
        return PlainStepper(network, build_optimizer(spec.optimizer, network.parameters()))

    def exports(self, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        """The dense weights."""
        return {"model.safetensors": dict(network.state_dict())}

    def layers(self, network: nn.Module) -> list[dict[str, Any]]:
        """No layer is constrained."""
        return []


def run(spec: TrainDenseSpec, run: Run) -> Outcome:
    """Train and deliver; see :func:`stiefel.methods.training.run_training` for errors."""
    return run_training(spec, run, Unconstrained())


METHOD = Method("train.dense", TrainDenseSpec, run)
