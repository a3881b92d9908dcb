"""From training layers to inference layers: two thin factors or one dense weight, by the clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from stiefel.calling import call
from stiefel.errors import InvalidInputError
from stiefel.lowrank.attention import LowRankMultiheadAttention, is_trained
from stiefel.lowrank.convolution import LowRankConv2d
from stiefel.lowrank.factored import FactoredConv1D, FactoredConv2d, FactoredLinear, balanced
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.linear import LowRankLinear
from stiefel.replacing import replace_module

Form = Literal["auto", "factored", "merged"]
ROUNDS = 7


class Exported(NamedTuple):
    """What became of one layer; times in milliseconds where they were measured."""

    name: str
    form: str
    factored_ms: float | None = None
    merged_ms: float | None = None


def export(model: nn.Module, *, form: Form = "auto", example: Any = None) -> tuple[Exported, ...]:
    """Replace every low-rank layer in place by an inference layer.

    Args:
        model: after ``integrator.finish()``.
        form: ``factored`` writes factor_out and factor_in, as the conversion method does;
            ``merged`` writes ordinary dense layers; ``auto`` measures both, layer by layer.
        example: one call of ``model``: a tensor, a tuple of arguments, or a mapping. With
            ``auto`` each layer is timed on the input it receives; without, the form that stores
            fewer numbers is taken.

    Attention layers keep their class; the projections inside are replaced. :func:`merge` turns
    them back too. What was frozen stays frozen.

    Cost: for ``auto`` about 20 evaluations of every layer.
    """
    if form not in get_args(Form):
        raise InvalidInputError(
            f"unknown form {form!r}", field="/form", fix="give factored, merged or auto"
        )
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, LowRankLayer)]
    inputs = _inputs(model, layers, example) if form == "auto" and example is not None else {}
    report = []
    for name, layer in layers:
        choices = {"factored": factored_of(layer), "merged": merged_of(layer)}
        if layer.is_dense:
            entry = Exported(name, "merged")
        elif form != "auto":
            entry = Exported(name, form)
        elif name in inputs:
            thin, whole = _race(choices["factored"], choices["merged"], inputs[name])
            entry = Exported(name, "factored" if thin <= whole else "merged", thin, whole)
        else:
            smaller = layer.parameter_count() < _dense_count(layer)
            entry = Exported(name, "factored" if smaller else "merged")
        new = _frozen_as(layer, choices[entry.form])
        replace_module(model, name, new.train(layer.training))
        report.append(entry)
    return tuple(report)


def merge(model: nn.Module) -> nn.Module:
    """Turn every low-rank layer, and every one of two factors, back into a dense one, in place."""
    export(model, form="merged")
    for name, module in list(model.named_modules()):
        if isinstance(module, FactoredLinear | FactoredConv2d):
            new = _frozen_as(module, _multiplied(module))
            replace_module(model, name, new.train(module.training))
    for name, module in list(model.named_modules()):
        if isinstance(module, LowRankMultiheadAttention):
            replace_module(model, name, module.to_dense())
    return model


def _frozen_as(old: nn.Module, new: nn.Module) -> nn.Module:
    for name, parameter in new.named_parameters():
        if name != "bias":  # which is the old layer's own
            parameter.requires_grad_(is_trained(old))
    return new


@torch.no_grad()
def _multiplied(layer: FactoredLinear | FactoredConv2d) -> nn.Module:
    """The dense layer of two factors."""
    if isinstance(layer, FactoredConv1D):
        return _TransposedLinear(layer.weight.mT, layer.bias)
    if isinstance(layer, FactoredLinear):
        linear = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        linear.weight, linear.bias = nn.Parameter(layer.weight), layer.bias  # type: ignore[assignment]
        return linear
    return _dense_conv(layer, layer.weight)


@torch.no_grad()
def factored_of(layer: LowRankLayer) -> nn.Module:
    """The two-factor layer of the same function; a dense layer is returned merged."""
    if layer.is_dense:
        return merged_of(layer)
    factor_out, factor_in = balanced(layer.U, layer.S, layer.V)
    if isinstance(layer, LowRankConv2d):
        kernel = layer.geometry.kernel_of(factor_in.mT)
        out = factor_out.reshape(-1, factor_out.shape[-1], 1, 1)
        return FactoredConv2d(_plain_conv(layer), out, kernel.clone(), layer.bias)
    if isinstance(layer, LowRankLinear) and layer.transposed:
        stored = factor_in.mT.contiguous(), factor_out.mT.contiguous()
        return FactoredConv1D(*stored, layer.bias)
    return FactoredLinear(factor_out, factor_in, layer.bias)


@torch.no_grad()
def merged_of(layer: LowRankLayer) -> nn.Module:
    """The dense layer of the same function."""
    weight = layer.weight
    if isinstance(layer, LowRankConv2d):
        return _dense_conv(layer, weight.clone())
    if isinstance(layer, LowRankLinear) and layer.transposed:
        return _TransposedLinear(weight, layer.bias)
    n, m = layer.matrix_shape
    linear = nn.Linear(m, n, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.clone())
    linear.bias = layer.bias  # type: ignore[assignment]
    return linear


class _TransposedLinear(nn.Module):
    """A linear layer that stores W^T, so that the weights fit the network they came from."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.mT.contiguous())
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.mT, self.bias)


def _dense_conv(layer: LowRankConv2d | FactoredConv2d, weight: Tensor) -> nn.Conv2d:
    conv = _plain_conv(layer)
    conv.weight, conv.bias = nn.Parameter(weight), layer.bias
    return conv


def _plain_conv(layer: LowRankConv2d | FactoredConv2d) -> nn.Conv2d:
    """A convolution of the layer's geometry, its numbers still to come."""
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
        device="meta",
    )


def _dense_count(layer: LowRankLayer) -> int:
    bias = 0 if layer.bias is None else layer.bias.numel()
    groups = layer.U.shape[0] if layer.U.ndim > 2 else 1
    n, m = layer.matrix_shape
    return groups * n * m + bias


@torch.no_grad()
def _inputs(
    model: nn.Module, layers: list[tuple[str, LowRankLayer]], example: Any
) -> dict[str, Tensor]:
    """What each layer receives when the model sees the example."""
    seen: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        return lambda _, args, named: seen.__setitem__(name, (*args, *named.values())[0])

    hooks = [layer.register_forward_pre_hook(watch(n), with_kwargs=True) for n, layer in layers]
    modes = {module: module.training for module in model.modules()}
    try:
        call(model.eval(), example)
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    return seen


@torch.no_grad()
def _race(first: nn.Module, second: nn.Module, x: Tensor) -> tuple[float, float]:
    """Median milliseconds of both on ``x``, measured in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(ROUNDS + 2):
        for module, record in zip((first, second), times, strict=True):
            started = time.perf_counter()
            module(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            if turn >= 2:
                record.append((time.perf_counter() - started) * 1e3)
    return statistics.median(times[0]), statistics.median(times[1])
