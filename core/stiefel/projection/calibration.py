"""Second moments of what every layer of a model receives, and a whole model factored by them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stiefel.calling import call
from stiefel.conv1d import is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.projection.model_ranks import centring, matrix_of, ranks_within, roots_of
from stiefel.projection.whitening import SecondMoment, Whitened, factorize_whitened


class Compressed(NamedTuple):
    """A factored checkpoint for the model, and the account of every layer."""

    tensors: dict[str, Tensor]  # with N.factor_out and N.factor_in in place of N.weight
    layers: dict[str, Whitened]
    kept: tuple[str, ...] = ()  # layers that a budget leaves whole


def collect_moments(
    model: nn.Module, names: Sequence[str], batches: Iterable[Any]
) -> dict[str, SecondMoment]:
    """Run ``model`` on the batches and sum the moments of what the named layers receive.

    Args:
        model: any module; evaluated without gradients in its present mode.
        names: linear layers and ungrouped 2-d convolutions, whose rows are their patches.
        batches: each a tensor, a tuple of arguments, or a mapping of keywords.

    Raises:
        InvalidInputError: a convolution of another kind, or a layer that no batch reaches.

    Layers that always receive the very same tensors, such as q, k and v, share one moment.

    Cost: one pass over the data and 2 m^2 flops per row and distinct input, in float64.
    """
    modules = {name: model.get_submodule(name) for name in names}
    for name, module in modules.items():
        _check_kind(module, name)
    gathering = _Gathering(modules)
    hooks = [
        module.register_forward_pre_hook(gathering.hook(name), with_kwargs=True)
        for name, module in modules.items()
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
                gathering.forget_tensors()
    finally:
        for hook in hooks:
            hook.remove()
    moments = gathering.moments
    absent = sorted(set(names) - set(moments))
    if absent:
        raise InvalidInputError(
            f"no calibration batch reached {absent[:3]}",
            code="empty_calibration",
            fix="give batches that use these layers, or exclude them",
        )
    return moments


class _Gathering:
    """Moments by layer; layers of one history share one, and part when their histories do."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self.moments: dict[str, SecondMoment] = {}
        self._modules = modules
        self._nodes: dict[tuple[Any, ...], int] = {}  # (history before, tensor) -> history
        self._history = {n: self._node("patches", _patches(m)) for n, m in modules.items()}
        self._tensors: list[tuple[Tensor, int]] = []  # of this batch, with their versions
        self._earlier = 0

    def hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """What the layer calls with its arguments."""
        return lambda _, args, named: self._receive(name, received(args, named))

    def forget_tensors(self) -> None:
        """The batch is over."""
        self._earlier += len(self._tensors)
        self._tensors.clear()

    def _receive(self, name: str, x: Tensor) -> None:
        self._history[name] = self._node(self._history[name], self._number(x))
        others = [n for n in self.moments if n != name]
        for other in others:
            if self._history[other] == self._history[name]:
                self.moments[name] = self.moments[other]
                return
        module = self._modules[name]
        rows = input_rows(module, x)
        moment = self.moments.get(name) or SecondMoment(
            rows.shape[-1], device=rows.device, stored_transposed=is_transposed_linear(module)
        )
        if any(self.moments[other] is moment for other in others):
            moment = copy.deepcopy(moment)
        moment.add(rows)
        self.moments[name] = moment

    def _number(self, x: Tensor) -> int:
        """Which tensor of all this is; one that was changed in place is another."""
        now = 0 if x.is_inference() else x._version
        for index, (tensor, version) in enumerate(self._tensors):
            if tensor is x and version == now:
                return self._earlier + index
        self._tensors.append((x, now))
        return self._earlier + len(self._tensors) - 1

    def _node(self, *key: Any) -> int:
        return self._nodes.setdefault(key, len(self._nodes))


def received(args: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The tensor that a layer is called with, by position or by name."""
    x: Tensor = (*args, *named.values())[0]
    return x


def _patches(module: nn.Module) -> tuple[Any, ...]:
    """How the layer makes rows of its input, and how its weight goes with them."""
    if not isinstance(module, nn.Conv2d):
        return (is_transposed_linear(module),)
    return module.kernel_size, module.dilation, module.padding, module.stride


def moment_tensors(moments: Mapping[str, SecondMoment]) -> dict[str, Tensor]:
    """The moments as the conversion methods' ``calibration`` file names them.

    ``N.second_moment`` (m, m), ``N.first_moment`` (m,) and ``N.count`` of every layer N, and
    ``N.transposed`` where its weight is stored as ``(m, n)``.
    """
    tensors = {}
    for name, moment in moments.items():
        tensors[f"{name}.second_moment"] = moment.matrix.clone()
        tensors[f"{name}.first_moment"] = moment.total.clone()
        tensors[f"{name}.count"] = torch.tensor(float(moment.count), dtype=torch.float64)
        if moment.stored_transposed:
            tensors[f"{name}.transposed"] = torch.ones((), dtype=torch.float64)
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

    Under a budget, a layer whose factors would not be smaller than its weight stays whole.

    Args:
        model: read, not changed; hand the tensors to ``stiefel.lowrank.load_factored``.
        moments: from :func:`collect_moments`.
        budget: parameters that all factors together may hold, spread greedily by the share of
            each layer's output energy per parameter.
        ranks: by layer name, instead of a budget.
        correct_bias: see :func:`factorize_whitened`; layers without bias are not centred.

    Raises:
        InvalidInputError: both or neither of ``budget`` and ``ranks``, a budget too small for
            rank 1 everywhere, or a rank that is missing, unasked for or out of range.
    """
    ranks = ranks_within(model, moments, budget, ranks, correct_bias=correct_bias)
    centre = centring(model, moments, correct_bias)
    roots = roots_of(moments, centre)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    layers = {}
    kept = tuple(name for name in moments if name not in ranks)
    for name in ranks:
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
    return Compressed(tensors, layers, kept)


def _check_kind(module: nn.Module, name: str = "") -> None:
    """Raise where the rows that the weight multiplies are not known."""
    if not isinstance(module, nn.Conv2d):
        return
    if module.groups != 1 or isinstance(module.padding, str) or module.padding_mode != "zeros":
        raise InvalidInputError(
            "only ungrouped convolutions with zero padding in numbers are calibrated"
            + (f", not {name!r}" if name else ""),
            code="unsupported_layer",
            tensor=name or None,
            fix="exclude the layer",
        )


def input_rows(module: nn.Module, x: Tensor) -> Tensor:
    """The rows that the layer's weight matrix multiplies: inputs, or patches of a convolution."""
    _check_kind(module)
    if not isinstance(module, nn.Conv2d):
        return x
    assert not isinstance(module.padding, str)
    patches = functional.unfold(
        x, module.kernel_size, module.dilation, module.padding, module.stride
    )
    return patches.mT


def store(tensors: dict[str, Tensor], name: str, module: nn.Module, result: Whitened) -> None:
    """Put the layer's factors, those of the matrix as it is stored, in place of its weight."""
    weight = tensors.pop(f"{name}.weight")
    outer, inner = result.factor_out, result.factor_in
    if is_transposed_linear(module):
        outer, inner = inner.mT.contiguous(), outer.mT.contiguous()
    ones = (1,) * (weight.ndim - 2)
    tensors[f"{name}.factor_out"] = outer.reshape(*outer.shape, *ones)
    tensors[f"{name}.factor_in"] = inner.reshape(result.rank, *weight.shape[1:])
    assert math.prod(weight.shape[1:]) == inner.shape[1]
    if result.bias_change is not None:
        tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + result.bias_change
