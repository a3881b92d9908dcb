"""Network-level fit: unitary weights whose network answers like the original one.

Projecting each layer alone minimises errors in the weights. Here all layers together minimise the
error of the outputs: every selected weight becomes ``s exp(L(theta)) Q`` around its projection Q,
and the gradient passes through all exponentials at once. UWPA (arXiv 2102.10052) carried from
one matrix to the whole network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stiefel.errors import InvalidInputError
from stiefel.linalg.skew_exponential import exp_skew
from stiefel.projection.lie import skew_of_parameters
from stiefel.projection.nearest import Scale, nearest_unitary

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NetworkFit:
    """The fitted network with plain weights, and how well it answers like the original."""

    network: nn.Module
    initial_loss: float  # of the layer-by-layer projection, on all inputs
    loss: float  # after the fit, on all inputs
    history: tuple[float, ...]  # per iteration, on its batch
    gains: dict[str, float]


class _Rotated(nn.Module):
    """weight = gain * exp(L(theta)) Q, theta = 0 at the start; exp on the right where Q is wide."""

    def __init__(self, base: Tensor, gain: float) -> None:
        super().__init__()
        self.wide = base.shape[0] < base.shape[1]
        # exp acts on the long side: every frame can be reached, its column space included.
        self.register_buffer("base", base)
        self.base: Tensor
        self.log_gain = nn.Parameter(torch.tensor(gain, dtype=base.real.dtype).log())

    def forward(self, theta: Tensor) -> Tensor:
        rotation = exp_skew(skew_of_parameters(theta))
        frame = self.base @ rotation if self.wide else rotation @ self.base
        return self.log_gain.exp() * frame


class NetworkFitter:
    """Fits a copy of ``network`` whose named layers have orthonormal weights to its outputs.

        fit = NetworkFitter(network, inputs, layers=names).fit()

    or step by step, with a state that can be kept.

    Args:
        network: evaluated in evaluation mode; it is not changed.
        inputs: ``(count, ...)``, what the network takes.
        layers: names of modules with a two-dimensional ``weight``; see ``named_modules``.
        iterations: Adam steps on the Lie parameters and the gains.
        batch: inputs per step, drawn by ``generator`` (default: seed 0).
        learning_rate: of Adam, falling to zero as a cosine.
        scale: gain of the start; ``none`` keeps every gain at 1.
        loss: of the outputs against those of the original.
        generator: draws the batches.

    Raises:
        InvalidInputError: a name that is no module with a two-dimensional weight, or inputs that
            are empty or not finite.

    Cost: per step one pass forward and backward, and per layer one exponential of its longer side
    with its backward pass.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Tensor,
        *,
        layers: Sequence[str],
        iterations: int = 200,
        batch: int = 256,
        learning_rate: float = 1e-3,
        scale: Scale = "mean",
        loss: Loss = nn.functional.mse_loss,
        generator: torch.Generator | None = None,
    ) -> None:
        if not len(inputs) or (inputs.is_floating_point() and not bool(inputs.isfinite().all())):
            raise InvalidInputError("the inputs are empty or not finite", code="non_finite_inputs")
        self._inputs, self._batch, self._loss = inputs, batch, loss
        self._rate, self._iterations = learning_rate, iterations
        self._generator = generator or torch.Generator().manual_seed(0)
        self._layers = tuple(layers)
        self._student = copy.deepcopy(network).eval()
        original = copy.deepcopy(network).eval()
        with torch.no_grad():
            self._targets = torch.cat([original(part) for part in torch.split(inputs, 1024)])
        self._trained = [p for name in layers for p in _parametrised(self._student, name, scale)]
        self._initial = self._whole_loss()
        self._optimizer = torch.optim.Adam(self._trained, lr=learning_rate)
        self._history: list[float] = []

    @property
    def iteration(self) -> int:
        """How many steps have been taken."""
        return len(self._history)

    def fit(self, on_iteration: Callable[[int, float], None] | None = None) -> NetworkFit:
        """Take the steps that are left; ``on_iteration`` hears each and its loss, and may raise."""
        while self.iteration < self._iterations:
            value = self.step()
            if on_iteration is not None:
                on_iteration(self.iteration - 1, value)
        return self.result()

    def step(self) -> float:
        """Take one step of Adam on a drawn batch; return the loss before it."""
        share = self.iteration / max(1, self._iterations)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        chosen = torch.randperm(len(self._inputs), generator=self._generator)[: self._batch]
        self._optimizer.zero_grad()
        value = self._loss(self._student(self._inputs[chosen]), self._targets[chosen])
        value.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._history.append(float(value.detach()))
        return self._history[-1]

    def state_dict(self) -> dict[str, Any]:
        """Everything that :meth:`load_state_dict` needs to go on with the same bits."""
        return {
            "trained": [p.detach().clone() for p in self._trained],
            "optimizer": self._optimizer.state_dict(),
            "generator": self._generator.get_state(),
            "history": list(self._history),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken, from the same network and inputs."""
        with torch.no_grad():
            for parameter, saved in zip(self._trained, state["trained"], strict=True):
                parameter.copy_(saved)
        self._optimizer.load_state_dict(state["optimizer"])
        self._generator.set_state(state["generator"])
        self._history = list(state["history"])

    def result(self) -> NetworkFit:
        """Return the network with plain weights; the fit is over."""
        final = self._whole_loss()
        gains = {name: _plain(self._student.get_submodule(name)) for name in self._layers}
        return NetworkFit(self._student, self._initial, final, tuple(self._history), gains)

    @torch.no_grad()
    def _whole_loss(self) -> float:
        total = 0.0
        parts = zip(torch.split(self._inputs, 1024), torch.split(self._targets, 1024), strict=True)
        for part, target in parts:
            total += float(self._loss(self._student(part), target)) * len(part)
        return total / len(self._inputs)


def _parametrised(network: nn.Module, name: str, scale: Scale) -> list[nn.Parameter]:
    """Register the parametrisation on one layer and return what is trained of it."""
    layer = dict(network.named_modules()).get(name)
    weight = getattr(layer, "weight", None)
    if layer is None or not isinstance(weight, Tensor) or weight.ndim != 2:
        raise InvalidInputError(
            f"{name!r} is no module with a two-dimensional weight",
            fix="use names from named_modules() of linear layers",
        )
    near = nearest_unitary(weight.detach(), scale=scale)
    side = max(weight.shape)
    module = _Rotated(near.factor, near.gain)
    layer.weight = nn.Parameter(weight.new_zeros(side, side))
    parametrize.register_parametrization(layer, "weight", module, unsafe=True)
    theta = layer.get_parameter("parametrizations.weight.original")
    return [theta, module.log_gain] if scale == "mean" else [theta]


def _plain(layer: nn.Module) -> float:
    """Make the current weight an ordinary parameter again and return its gain."""
    gain = float(layer.get_parameter("parametrizations.weight.0.log_gain").detach().exp())
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return gain
