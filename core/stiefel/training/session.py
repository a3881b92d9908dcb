"""From a spec to a trained network: data, network, constraint, loop, in that order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.models import build_network
from stiefel.models.adapter import architecture
from stiefel.run import Run
from stiefel.specs.training import TrainingSpec
from stiefel.training.data.dataset import Dataset
from stiefel.training.data.opening import open_data
from stiefel.training.determinism import deterministic_mode
from stiefel.training.evaluation import Evaluation
from stiefel.training.expecting import expect_memory, rehearse
from stiefel.training.loop import Loop
from stiefel.training.starting import load_weights, tied_names
from stiefel.training.stepper import Stepper
from stiefel.training.threads import threads_for
from stiefel.training.world import World

S = TypeVar("S", bound=TrainingSpec, contravariant=True)


class Constraint(Protocol[S]):
    """What a method does to a network so that its weights stay on a manifold.

    The network is the architecture itself: its names are those that callers know.
    """

    def attach(self, network: nn.Module, spec: S, *, steps: int) -> Stepper:
        """Swap layers in place where the spec says so and return what steps them."""

    def exports(self, network: nn.Module) -> dict[str, dict[str, Tensor]]:
        """File name -> tensors of the finished network; ``model.safetensors`` is always there."""

    def layers(self, network: nn.Module) -> list[dict[str, Any]]:
        """One row per layer that could be constrained: name, what became of it, why."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    network: nn.Module
    evaluation: Evaluation
    loop: Loop
    constraint: Constraint[Any]
    exports: dict[str, dict[str, Tensor]]
    layers: list[dict[str, Any]]
    parameters_before: int
    uncounted: frozenset[str]  # tensors of the exports that are no parameter, or one again

    def best(self) -> dict[str, Tensor]:
        """The dense weights of the best evaluation; the network is that one from now on."""
        self.loop.return_to_best()
        return self.constraint.exports(architecture(self.network))["model.safetensors"]

    @property
    def stored_parameters(self) -> int:
        """Parameters in the export that stores the fewest, counted as ``parameters_before``."""
        return min(
            sum(tensor.numel() for name, tensor in export.items() if name not in self.uncounted)
            for export in self.exports.values()
        )


def train(spec: S, run: Run, constraint: Constraint[S]) -> Trained:
    """Train to the end, or raise; resumes from the newest checkpoint in ``run.state``.

    Raises:
        InvalidInputError: data, network, weights or hyperparameters that cannot be used.
        TooLargeError: more memory needed than there is; nothing has been trained.
        StopRequested: after a checkpoint.
    """
    device = choose_device(spec)
    on_device = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=on_device), deterministic_mode(spec.deterministic):
        torch.manual_seed(spec.seed)
        dataset = open_data(spec.data, run.input, seed=spec.seed)
        touched = expect_memory(spec, run, dataset.signature)
        network = build_network(spec.network, dataset.signature, seed=spec.seed)
        if spec.weights:
            load_weights(architecture(network), run.input / "weights", fresh=spec.fresh)
        network.to(device)
        touched = rehearse(spec, run, network, dataset) or touched
        with threads_for(touched, device):
            return _trained(spec, run, constraint, network, dataset, World(device))


def _trained(
    spec: S, run: Run, constraint: Constraint[S], network: nn.Module, dataset: Dataset, world: World
) -> Trained:
    own = architecture(network)
    parameters = sum(p.numel() for p in network.parameters())
    uncounted = frozenset([*dict(own.named_buffers()), *tied_names(own)])
    steps = spec.epochs * dataset.batches_per_epoch(spec.batch_size)
    stepper = constraint.attach(own, spec, steps=min(steps, spec.max_steps or steps))
    loop = Loop(spec, network, dataset, stepper, run, world)
    evaluation = loop.train()
    if spec.deliver == "best":
        evaluation = loop.return_to_best()
    exports, layers = constraint.exports(own), constraint.layers(own)
    return Trained(network, evaluation, loop, constraint, exports, layers, parameters, uncounted)


def choose_device(spec: TrainingSpec) -> torch.device:
    """The device the spec asks for; ``auto`` takes CUDA where there is one."""
    if spec.device == "cpu" or (spec.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidInputError(
            "this worker has no CUDA device",
            code="no_such_device",
            fix='set device to "auto" or "cpu"',
            field="/device",
        )
    return torch.device("cuda", torch.cuda.current_device())
