"""Replace the layers of a model by orthogonal ones that start from its projected weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from stiefel.conv1d import as_linear, is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.linalg import polar_factor
from stiefel.replacing import replace_module
from stiefel.unitary.frame_convolution import FrameConv2d
from stiefel.unitary.linear import OrthogonalLinear
from stiefel.unitary.rnn import OrthogonalRNN


@dataclass(frozen=True)
class Swapped:
    """One replaced layer."""

    name: str
    kind: str
    distance: float  # ||W / gain - W_projected||_F / ||W / gain||_F
    gain: float  # mean singular value of W: the least-squares scale


@dataclass(frozen=True)
class Skipped:
    """One layer left as it was, and why."""

    name: str
    reason: str


@dataclass
class SwapReport:
    """What ``to_unitary`` did."""

    swapped: list[Swapped] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def to_unitary(
    model: nn.Module,
    *,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    keep_scale: bool = True,
) -> SwapReport:
    """Replace Linear, Conv2d and RNN layers of ``model`` in place.

    Args:
        model: any module, Hugging Face models with their ``Conv1D`` included; its own root cannot
            be replaced.
        include: shell patterns of dotted module names, such as ``encoder.*.dense``.
        exclude: patterns of names to leave out again.
        keep_scale: multiply the output by the mean singular value of the old weight, the
            scale that leaves the outputs nearest to what they were (not for RNN).

    Returns:
        the layers replaced, and those skipped with the reason. Containers and layers without
        a weight matrix are not listed.

    Raises:
        InvalidInputError: the model is itself one layer, or a weight is not finite. The model
            is then as it was.

    A frozen weight becomes a frozen frame.
    """
    if _builder(model) is not None:
        raise InvalidInputError(
            "the model is a single layer, which cannot be replaced inside itself",
            fix="wrap it: torch.nn.Sequential(layer)",
        )
    wanted, unwanted = _patterns(include), _patterns(exclude)
    shared = _shared_parameters(model)
    report = SwapReport()
    chosen = []
    for name, module in model.named_modules():
        if not name or not _has_matrix(module):
            continue
        reason = _reason(name, module, wanted, unwanted, shared)
        if reason:
            report.skipped.append(Skipped(name, reason))
        else:
            _refuse_non_finite(name, module)
            chosen.append((name, module))
    # All verdicts come before the first change: a model that is refused stays as it was.
    for name, module in chosen:
        report.swapped.append(_swap(model, name, module, keep_scale=keep_scale))
    return report


def _swap(model: nn.Module, name: str, module: nn.Module, *, keep_scale: bool) -> Swapped:
    build = _builder(module)
    assert build is not None
    layer, old = build(module)
    frozen = not any(p.requires_grad for p in module.parameters(recurse=False) if p.ndim > 1)
    frame = old if old.shape[0] >= old.shape[1] else old.mT
    factor = polar_factor(frame.detach()).factor
    gain = float((factor.conj() * frame).sum().real / frame.shape[1])
    with torch.no_grad():
        layer.get_parameter("frame").copy_(factor)
        if keep_scale and not isinstance(layer, OrthogonalRNN):
            layer.get_buffer("gain").fill_(gain)
    layer.get_parameter("frame").requires_grad_(not frozen)
    layer.to(old.device).train(module.training)
    replace_module(model, name, layer)
    distance = (frame / gain - factor).norm() / (frame / gain).norm() if gain else factor.norm()
    return Swapped(name, type(layer).__name__, float(distance), gain)


def _linear(module: nn.Module) -> tuple[nn.Module, Tensor]:
    source = as_linear(module)
    layer = OrthogonalLinear(
        source.in_features,
        source.out_features,
        bias=source.bias is not None,
        dtype=source.weight.dtype,
    )
    layer.replaces_transposed = is_transposed_linear(module)
    _copy_bias(layer, source.bias)
    return layer, source.weight.detach()


def _conv(module: nn.Module) -> tuple[nn.Module, Tensor]:
    assert isinstance(module, nn.Conv2d)
    layer = FrameConv2d(
        module.in_channels,
        module.out_channels,
        _pair(module.kernel_size),
        stride=_pair(module.stride),
        padding=module.padding if isinstance(module.padding, str) else _pair(module.padding),
        dilation=_pair(module.dilation),
        bias=module.bias is not None,
        normalise=False,
        dtype=module.weight.dtype,
    )
    _copy_bias(layer, module.bias)
    return layer, module.weight.detach().flatten(1)


def _recurrent(module: nn.Module) -> tuple[nn.Module, Tensor]:
    assert isinstance(module, nn.RNN)
    layer = OrthogonalRNN(
        module.input_size,
        module.hidden_size,
        nonlinearity="tanh" if module.nonlinearity == "tanh" else "relu",
        bias=module.bias,
        batch_first=module.batch_first,
        dtype=module.get_parameter("weight_hh_l0").dtype,
    )
    with torch.no_grad():
        layer.input_weight.copy_(module.get_parameter("weight_ih_l0"))
    if module.bias:
        both = module.get_parameter("bias_ih_l0") + module.get_parameter("bias_hh_l0")
        _copy_bias(layer, both)
    return layer, module.get_parameter("weight_hh_l0").detach()


_BUILDERS: dict[type[nn.Module], Callable[[nn.Module], tuple[nn.Module, Tensor]]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.RNN: _recurrent,
}


def _builder(module: nn.Module) -> Callable[[nn.Module], tuple[nn.Module, Tensor]] | None:
    return _linear if is_transposed_linear(module) else _BUILDERS.get(type(module))


def _reason(
    name: str, module: nn.Module, wanted: list[str], unwanted: list[str], shared: set[int]
) -> str:
    """Why a layer stays as it is, or nothing."""
    if not any(fnmatchcase(name, pattern) for pattern in wanted):
        return "not included by name"
    if any(fnmatchcase(name, pattern) for pattern in unwanted):
        return "excluded by name"
    if any(id(p) in shared for p in module.parameters(recurse=False)):
        return "shares a parameter with another layer"
    if parametrize.is_parametrized(module):
        return "the weight is parametrized"
    if _builder(module) is None:
        return f"no orthogonal counterpart of {type(module).__name__}"
    return _unfit(module)


def _unfit(module: nn.Module) -> str:
    dtypes = {p.dtype for p in module.parameters(recurse=False)}
    if not dtypes <= {torch.float32, torch.float64}:
        return f"weights of {dtypes.pop()}: convert to float32 first"
    if any(not bool(p.any()) for p in module.parameters(recurse=False) if p.ndim > 1):
        return "the weight is zero: every orthogonal matrix is equally near"
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return f"groups={module.groups}: each group would need its own frame"
        if module.padding_mode != "zeros":
            return f"padding_mode={module.padding_mode}"
    if isinstance(module, nn.RNN):
        single = module.num_layers == 1 and not module.bidirectional
        if not single:
            return "only one layer and one direction are supported"
    return ""


def _refuse_non_finite(name: str, module: nn.Module) -> None:
    if not all(bool(p.isfinite().all()) for p in module.parameters(recurse=False)):
        raise InvalidInputError(
            f"the weights of {name!r} hold NaN or infinity",
            code="non_finite_weights",
            tensor=name,
            fix="repair or exclude the layer",
        )


def _has_matrix(module: nn.Module) -> bool:
    if isinstance(module, parametrize.ParametrizationList):
        return False  # its owner is listed
    if parametrize.is_parametrized(module, "weight"):
        return True
    return any(p.ndim >= 2 for p in module.parameters(recurse=False))


def _shared_parameters(model: nn.Module) -> set[int]:
    seen: set[int] = set()
    twice: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (twice if id(parameter) in seen else seen).add(id(parameter))
    return twice


def _copy_bias(layer: nn.Module, bias: Tensor | None) -> None:
    if bias is not None:
        with torch.no_grad():
            layer.get_parameter("bias").copy_(bias)


def _patterns(given: str | Iterable[str]) -> list[str]:
    return [given] if isinstance(given, str) else list(given)


def _pair(sizes: tuple[int, ...]) -> tuple[int, int]:
    return sizes[0], sizes[1]
