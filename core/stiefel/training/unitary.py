"""Unitary training as a stepper: ProjUNN for the frames, an ordinary optimizer for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect, polar_factor
from stiefel.specs.selecting import OWN_TAKEN
from stiefel.specs.train_projunn import TrainProjunnSpec
from stiefel.training.naming import check_layer_names
from stiefel.training.stepper import base_rates, set_rate
from stiefel.unitary import (
    FrameConv2d,
    OrthogonalLinear,
    ProjUNN,
    Skipped,
    SwapReport,
    manifold_parameters,
    to_unitary,
)


class UnitaryStepper:
    """Two optimizers in step; see :class:`stiefel.training.stepper.Stepper`.

    Args:
        network: its frames belong to ``manifold``, all else to ``others``.
        manifold: steps frames and keeps them orthonormal.
        others: None where every parameter is a frame.
    """

    def __init__(
        self, network: nn.Module, manifold: ProjUNN, others: torch.optim.Optimizer | None
    ) -> None:
        self._network, self._manifold, self._others = network, manifold, others
        self._optimizers = [manifold] if others is None else [manifold, others]
        self._rates = [base_rates(optimizer) for optimizer in self._optimizers]

    def zero_grad(self) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def step(
        self, *, rate: float, clip_norm: float | None, scaler: torch.amp.GradScaler
    ) -> tuple[str, ...]:
        """See :class:`stiefel.training.stepper.Stepper`; the spec refuses scaled gradients.

        Frames and the other parameters are clipped each by their own joint norm.
        """
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            set_rate(optimizer, rates, rate)
        if clip_norm is not None:
            self._manifold.clip_grad_norm_(clip_norm)
            if self._others is not None:
                free = [p for group in self._others.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(free, clip_norm)
        for optimizer in self._optimizers:
            optimizer.step()
        return ()

    def milestone(self, share: float) -> None:
        """Nothing changes on the way."""

    def measures(self) -> Mapping[str, float]:
        """The largest measured defect of every frame, and steps left out as not finite."""
        defects = {f"defect/{name}": _defect(p) for name, p in frames(self._network).items()}
        return defects | {"skipped_steps": float(self._manifold.skipped_steps())}

    @torch.no_grad()
    def finish(self) -> None:
        """Put the nearest orthonormal frame in the place of each, down to rounding."""
        for frame in frames(self._network).values():
            frame.copy_(polar_factor(frame.detach()).factor)

    def state_dict(self) -> dict[str, Any]:
        """Of both optimizers."""
        return {"optimizers": [optimizer.state_dict() for optimizer in self._optimizers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`stiefel.training.stepper.Stepper`."""
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def frames(network: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that lives on the manifold."""
    wanted = {id(p) for p in manifold_parameters(network)}
    return {name: p for name, p in network.named_parameters() if id(p) in wanted}


def _defect(frame: Tensor) -> float:
    return float(orthogonality_defect(frame.detach()).max())


def build_manifold_optimizer(network: nn.Module, spec: TrainProjunnSpec) -> ProjUNN:
    """Return ProjUNN over every frame, in one group per rank."""
    by_rank: dict[int, list[nn.Parameter]] = defaultdict(list)
    for frame in frames(network).values():
        by_rank[min(spec.rank, frame.shape[-1])].append(frame)
    return ProjUNN(
        [{"params": params, "rank": rank} for rank, params in sorted(by_rank.items())],
        lr=spec.optimizer.learning_rate / spec.learning_rate_divider,
        variant=spec.variant,
        approximation=spec.approximation,
        momentum=spec.unitary_momentum,
        scaling=spec.scaling,
        # A lost gradient shows in the loss, which the loop refuses with the step's number.
        nonfinite="skip",
        seed=spec.seed % 2**31,
    )


def swap_layers(network: nn.Module, spec: TrainProjunnSpec) -> SwapReport:
    """Make the layers unitary that the spec selects.

    Raises:
        InvalidInputError: a pattern matches no layer, or nothing is left to constrain.
    """
    names = check_layer_names(network, spec.include or (), spec.exclude)
    own = {name.rpartition(".")[0] for name in frames(network)}
    if spec.include is None and own:
        left = [name for name in names if name not in own]
        return SwapReport(skipped=[Skipped(name, OWN_TAKEN) for name in left])
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    exclude = [*spec.exclude, *(linear[-1:] if spec.include is None else ())]
    report = to_unitary(
        network, include=spec.include or ("*",), exclude=exclude, keep_scale=spec.keep_scale
    )
    if not report.swapped and not own:
        reasons = "; ".join(f"{skip.name}: {skip.reason}" for skip in report.skipped[:5])
        raise InvalidInputError(
            f"no layer can be constrained: {reasons}",
            code="nothing_converted",
            fix="check include and exclude",
            field="/include",
        )
    return report


@torch.no_grad()
def unitary_exports(network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """Frames as they were trained, and dense weights under the architecture's own names.

    A network without swapped layers has one form only: its frames are its weights.
    """
    trained = dict(network.state_dict())
    merged = dict(trained)
    for name, module in network.named_modules():
        if isinstance(module, OrthogonalLinear | FrameConv2d):
            del merged[f"{name}.frame"]
            del merged[f"{name}.gain"]
            weight = module.weight
            turned = isinstance(module, OrthogonalLinear) and module.replaces_transposed
            merged[f"{name}.weight"] = (weight.mT if turned else weight).contiguous()
    if merged.keys() == trained.keys():
        return {"model.safetensors": trained}
    return {"model.safetensors": merged, "model.unitary.safetensors": trained}


def unitary_layers(network: nn.Module, report: SwapReport) -> list[dict[str, Any]]:
    """One row per frame with its defect, how far projection moved it, and what was left alone."""
    swapped = {item.name: item for item in report.swapped}
    rows: list[dict[str, Any]] = []
    for name, frame in frames(network).items():
        row: dict[str, Any] = {"name": name, "shape": list(frame.shape), "defect": _defect(frame)}
        item = swapped.get(name.rpartition(".")[0])
        if item is not None:
            row |= {"kind": item.kind, "distance": item.distance, "gain": item.gain}
        rows.append(row)
    return rows + [{"name": skip.name, "skipped": skip.reason} for skip in report.skipped]
