"""Second moments of what every layer of a model receives, and a whole model factored by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stiefel.errors import InvalidInputError
from stiefel.projection.rank_rules import ranks_for_budget
from stiefel.projection.whitening import (
    Root,
    SecondMoment,
    Whitened,
    factorize_whitened,
    moment_root,
    whitened_values,
)


class Compressed(NamedTuple):
    """A factored checkpoint for the model, and the account of every layer."""

    tensors: dict[str, Tensor]  # with N.factor_out and N.factor_in in place of N.weight
    layers: dict[str, Whitened]


def collect_moments(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any]
) -> dict[str, SecondMoment]:
    """Run ``model`` on the batches and sum the moments of what the named layers receive.

    Args:
        model: any module; evaluated without gradients in its present mode.
        names: linear layers and ungrouped 2-d convolutions, whose rows are their patches.
        batches: each a tensor, a tuple of arguments, or a mapping of keywords.

    Layers that receive the very same tensor, such as q, k and v, share one moment.

    Cost: one pass over the data and 2 m^2 flops per row and distinct input, in float64.
    """
    modules = {name: model.get_submodule(name) for name in names}
    moments: dict[str, SecondMoment] = {}
    shared: dict[str, str] = {}
    last: list[tuple[Tensor, str]] = []

    def watch(name: str, module: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            leader = next((other for x, other in last if x is args[0]), name)
            if (
                leader != name
                and shared.setdefault(name, leader) == leader
                and (name not in moments or moments[name] is moments[leader])
            ):
                moments[name] = moments[leader]
                return
            last.append((args[0], name))
            rows = input_rows(module, args[0])
            if name not in moments:
                moments[name] = SecondMoment(rows.shape[-1], device=rows.device)
            moments[name].add(rows)

        return hook

    hooks = [m.register_forward_pre_hook(watch(n, m)) for n, m in modules.items()]
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
                last.clear()
    finally:
        for hook in hooks:
            hook.remove()
    absent = sorted(set(names) - set(moments))
    if absent:
        raise InvalidInputError(
            f"no calibration batch reached {absent[:3]}",
            code="empty_calibration",
            fix="give batches that use these layers, or exclude them",
        )
    return moments


def moment_tensors(moments: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
    """The moments as the conversion methods' ``calibration`` file names them.

    ``N.second_moment`` (m, m), ``N.first_moment`` (m,) and ``N.count`` of every layer N.
    """
    tensors = {}
    for name, moment in moments.items():
        tensors[f"{name}.second_moment"] = moment.matrix.clone()
        tensors[f"{name}.first_moment"] = moment.total.clone()
        tensors[f"{name}.count"] = torch.tensor(float(moment.count), dtype=torch.float64)
    return tensors


def factorize_model(
    model: nn.Module,
    moments: Mapping[str, SecondMoment],
    *,
    budget: int | None = None,
    ranks: Mapping[str, int] | None = None,
    correct_bias: bool = True,
) -> Compressed:
    """Factor every layer that has a moment, at given ranks or under one parameter budget.

    Args:
        model: read, not changed; hand the tensors to ``stiefel.lowrank.load_factored``.
        moments: from :func:`collect_moments`.
        budget: parameters that all factors together may hold, spread greedily by the share of
            each layer's output energy per parameter.
        ranks: by layer name, instead of a budget.
        correct_bias: see :func:`factorize_whitened`; layers without bias are not centred.

    Raises:
        InvalidInputError: both or neither of ``budget`` and ``ranks``.
    """
    ranks = ranks_within(model, moments, budget, ranks, correct_bias=correct_bias)
    centre = _centring(model, moments, correct_bias)
    roots = _roots(moments, centre)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    layers = {}
    for name in moments:
        module = model.get_submodule(name)
        result = factorize_whitened(
            matrix_of(module),
            moments[name],
            ranks[name],
            correct_bias=centre[name],
            root=roots[name],
        )
        store(tensors, name, module, result)
        layers[name] = result
    return Compressed(tensors, layers)


def ranks_within(
    model: nn.Module,
    moments: Mapping[str, SecondMoment],
    budget: int | None,
    ranks: Mapping[str, int] | None,
    *,
    correct_bias: bool,
) -> Mapping[str, int]:
    """The given ranks, or those that the greedy rule makes of the budget."""
    if (budget is None) == (ranks is None):
        raise InvalidInputError("give either budget or ranks", code="bad_budget")
    if ranks is not None:
        return ranks
    assert budget is not None
    roots = _roots(moments, _centring(model, moments, correct_bias))
    weights = {name: matrix_of(model.get_submodule(name)) for name in moments}
    spectra = {n: whitened_values(w, roots[n]).tolist() for n, w in weights.items()}
    return ranks_for_budget(
        spectra, {n: (w.shape[0], w.shape[1]) for n, w in weights.items()}, budget
    )


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """The rows that the layer's weight matrix multiplies: inputs, or patches of a convolution."""
    if not isinstance(module, nn.Conv2d):
        return x
    if module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise InvalidInputError(
            "only ungrouped convolutions with zero padding are calibrated",
            code="unsupported_layer",
            fix="exclude the layer",
        )
    patches = functional.unfold(
        x, module.kernel_size, module.dilation, module.padding, module.stride
    )
    return patches.mT


def _centring(
    model: nn.Module, moments: Mapping[str, SecondMoment], correct_bias: bool
) -> dict[str, bool]:
    """Layers whose bias can take up a change of the mean."""
    return {
        name: correct_bias and getattr(model.get_submodule(name), "bias", None) is not None
        for name in moments
    }


def _roots(moments: Mapping[str, SecondMoment], centre: Mapping[str, bool]) -> dict[str, Root]:
    """One factorisation per distinct moment and centring."""
    known: dict[tuple[int, bool], Root] = {}
    roots = {}
    for name, moment in moments.items():
        key = id(moment), centre[name]
        if key not in known:
            known[key] = moment_root(moment.centred() if centre[name] else moment.matrix)
        roots[name] = known[key]
    return roots


def matrix_of(module: nn.Module) -> Tensor:
    """The layer's weight as ``(n, m)``."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.detach().reshape(weight.shape[0], -1)


def store(tensors: dict[str, Tensor], name: str, module: nn.Module, result: Whitened) -> None:
    """Put the layer's factors in place of its weight."""
    weight = tensors.pop(f"{name}.weight")
    ones = (1,) * (weight.ndim - 2)
    tensors[f"{name}.factor_out"] = result.factor_out.reshape(*result.factor_out.shape, *ones)
    tensors[f"{name}.factor_in"] = result.factor_in.reshape(result.rank, *weight.shape[1:])
    assert math.prod(weight.shape[1:]) == result.factor_in.shape[1]
    if result.bias_change is not None:
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + result.bias_change


def call(model: nn.Module, batch: Any) -> None:
    """Evaluate the model on a tensor, a tuple of arguments, or a mapping of keywords."""
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, tuple | list):
        model(*batch)
    else:
        model(batch)
