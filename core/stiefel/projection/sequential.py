"""A whole model factored front to back, each layer on what the layers before it now send.

Every layer is fitted to the output W x that the dense model computes, from the input x' that
it receives once the layers before it are factored: the later layers repair what the earlier
ones spoilt. With C' = sum x' x'^T = R R^T and D = sum x x'^T, the best W' of its rank is the
truncated SVD of W D R^-T, with R undone by a solve. For x' = x that is :mod:`whitening`.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stiefel.calling import call
from stiefel.conv1d import is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.linalg.truncated_svd import Svd, widened
from stiefel.projection.calibration import Compressed, input_rows, received, store
from stiefel.projection.model_ranks import matrix_of, ranks_within
from stiefel.projection.whitening import (
    SecondMoment,
    Whitened,
    moment_root,
    output_change,
    unwhitened_factors,
)
from stiefel.rank_bounds import check_rank


class CrossMoment:
    """Moments of paired rows x of the dense model and x' of the factored one, in float64.

    What is summed is x', and x - x' beside it: where the two models hardly differ, as in the
    first layers, sums of x alone would leave an error only the digits that do not cancel.
    """

    def __init__(self, width: int, *, device: torch.device | str | None = None) -> None:
        self.received = SecondMoment(width, device=device)
        self._gap = SecondMoment(width, device=device)  # of x - x'
        self._mixed = torch.zeros_like(self._gap.matrix)  # sum (x - x') x'^T

    def add(self, dense: Tensor, received: Tensor) -> None:
        """Add rows ``(..., m)`` of both models, in the same order."""
        other = received.detach().reshape(-1, received.shape[-1]).to(self._mixed)
        gap = dense.detach().reshape(-1, dense.shape[-1]).to(self._mixed) - other
        self.received.add(received)
        self._gap.add(gap)
        self._mixed.addmm_(gap.T, other)

    @property
    def cross(self) -> Tensor:
        """D = sum x x'^T, ``(m, m)``."""
        return self.received.matrix + self._mixed

    @property
    def mean(self) -> Tensor:
        """E[x], ``(m,)``, of the dense model."""
        return self.received.mean + self._gap.mean

    def centred(self) -> tuple[Tensor, Tensor]:
        """C' and D about the means."""
        inner = self.received.centred()
        return inner, inner + self._centred_mixed()

    def output_error(self, weight: Tensor, parts: Sequence[Tensor], *, centred: bool) -> float:
        """``sqrt(sum |W x - P x'|^2)`` over the rows, P the product of ``parts``, in float64.

        Args:
            weight: W ``(n, m)``.
            parts: P itself ``(n, m)``, or factors of it.
            centred: about the means, whose difference a bias takes up.

        With W x - P x' = W (x - x') + (W - P) x'; nothing is assumed of P.
        """
        inner = self.received.centred() if centred else self.received.matrix
        gap = self._gap.centred() if centred else self._gap.matrix
        mixed = self._centred_mixed() if centred else self._mixed
        wide = widened(weight)
        change = wide - functools.reduce(torch.matmul, [widened(part) for part in parts])
        square = output_change(wide, gap) ** 2 + output_change(change, inner) ** 2
        square += 2 * float(((wide @ mixed) * change).sum())
        return math.sqrt(max(0.0, square))

    def _centred_mixed(self) -> Tensor:
        count = max(1, self.received.count)
        return self._mixed - torch.outer(self._gap.total, self.received.total) / count


def factorize_sequentially(
    model: nn.Module,
    moments: Mapping[str, SecondMoment],
    batches: Sequence[Any],
    *,
    budget: int | None = None,
    ranks: Mapping[str, int] | None = None,
    correct_bias: bool = True,
) -> Compressed:
    """Factor layer after layer, in the order in which the model calls them.

    Args:
        model: read, not changed; should be in evaluation mode.
        moments: of the dense model, from :func:`collect_moments`; they spread the budget.
        batches: walked once per distinct input, so a sequence and not an iterator.
        budget: see :func:`factorize_model`.
        ranks: by layer name, instead of a budget.
        correct_bias: the bias takes up the difference of the means.

    Returns:
        As :func:`factorize_model`; ``predicted_error`` is the distance of the layer's output from
        that of the dense model, each on its own inputs: it includes what came from the layers
        before and no factors could repair.

    Cost: two passes of the calibration data, up to the layer, and 6 m^2 flops per row, per
    distinct input, and a copy of the model.

    Source: arXiv 2403.07378, section 3.3 (update with the compressed inputs).
    """
    ranks = ranks_within(model, moments, budget, ranks, correct_bias=correct_bias)
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    compressed = copy.deepcopy(model)
    layers: dict[str, Whitened] = {}
    kept = tuple(name for name in moments if name not in ranks)
    for group in _groups(model, list(ranks), batches):
        moment = _paired_moment(model, compressed, group[0], batches)
        for name in group:
            module = model.get_submodule(name)
            centre = correct_bias and getattr(module, "bias", None) is not None
            result = fit(matrix_of(module), moment, ranks[name], correct_bias=centre)
            parts = (result.factor_out, result.factor_in)
            error = moment.output_error(matrix_of(module), parts, centred=centre)
            result = result._replace(predicted_error=error)
            store(tensors, name, module, result)
            _replace(compressed.get_submodule(name), result)
            layers[name] = result
    return Compressed(tensors, layers, kept)


def fit(weight: Tensor, moment: CrossMoment, rank: int, *, correct_bias: bool) -> Whitened:
    """Return the factors of rank r that best reproduce W x from x'.

    ``predicted_error`` is here what the rank alone costs: squared, it comes on top of the squared
    error of the best W' of any rank. :meth:`CrossMoment.output_error` measures both together.

    Raises:
        InvalidInputError: rank out of range, or an empty moment.
    """
    check_rank(rank, *weight.shape)
    wide = widened(weight)
    inner, cross = moment.centred() if correct_bias else (moment.received.matrix, moment.cross)
    root = moment_root(inner)
    target = torch.linalg.solve_triangular(root.lower, (wide @ cross).mT, upper=False).mT
    svd = Svd(*torch.linalg.svd(target, full_matrices=False))
    out, into = unwhitened_factors(svd, root, rank, "balanced")
    change = None
    if correct_bias:
        change = wide @ moment.mean - out @ (into @ moment.received.mean)
    return Whitened(
        out.to(weight.dtype).contiguous(),
        into.to(weight.dtype).contiguous(),
        None if change is None else change.to(weight.dtype),
        rank,
        float(torch.linalg.vector_norm(svd.sigma[rank:])),
        root.shift,
    )


class _Reached(Exception):  # noqa: N818  (no error: the pass has gone far enough)
    """Ends a forward pass at the layer whose input is wanted."""


class _Seen(NamedTuple):
    name: str
    x: Tensor


def _groups(model: nn.Module, names: list[str], batches: Sequence[Any]) -> list[list[str]]:
    """Layers by order of their first call; those that receive one tensor stand together."""
    seen: list[_Seen] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            if all(name != other.name for other in seen):
                seen.append(_Seen(name, received(args, named)))

        return hook

    hooks = [
        model.get_submodule(name).register_forward_pre_hook(watch(name), with_kwargs=True)
        for name in names
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                call(model, batch)
                if len(seen) == len(names):
                    break
    finally:
        for hook in hooks:
            hook.remove()
    groups: list[tuple[Tensor, list[str]]] = []
    for name, x in seen:
        members = next((members for other, members in groups if other is x), None)
        if members is None:
            groups.append((x, [name]))
        else:
            members.append(name)
    return [members for _, members in groups]


def _paired_moment(
    model: nn.Module, compressed: nn.Module, name: str, batches: Sequence[Any]
) -> CrossMoment:
    """The moments of one layer's input in both models."""
    moment: CrossMoment | None = None
    for batch in batches:
        dense, received = (_inputs(each, name, batch) for each in (model, compressed))
        if dense is None or received is None:
            continue
        moment = moment or CrossMoment(dense.shape[-1], device=dense.device)
        moment.add(dense, received)
    if moment is None:
        raise InvalidInputError(
            f"no calibration batch reached {name!r}",
            code="empty_calibration",
            fix="give the batches that the moments were collected on",
        )
    return moment


@torch.no_grad()
def _inputs(model: nn.Module, name: str, batch: Any) -> Tensor | None:
    """What the layer receives at its first call in this batch."""
    module = model.get_submodule(name)
    found: list[Tensor] = []

    def hook(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.append(input_rows(module, received(args, named)))
        raise _Reached

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        call(model, batch)
    except _Reached:
        return found[0]
    finally:
        handle.remove()
    return None


@torch.no_grad()
def _replace(module: nn.Module, result: Whitened) -> None:
    """Let the copy of the model compute as the factored layer will."""
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    product = result.factor_out @ result.factor_in
    product = product.mT if is_transposed_linear(module) else product
    weight.copy_(product.reshape(weight.shape))
    if bias is not None and result.bias_change is not None:
        bias += result.bias_change
