"""``to_low_rank``: swap layers of any model for low-rank ones; say what was left and why."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from stiefel.break_even import break_even_rank
from stiefel.conv1d import as_linear, is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.lowrank.attention import LowRankMultiheadAttention, dense_projections, why_not
from stiefel.lowrank.convolution import LowRankConv2d, kernel_matrix
from stiefel.lowrank.factored import Factored
from stiefel.lowrank.layer import LowRankLayer
from stiefel.lowrank.linear import Evaluation, LowRankLinear
from stiefel.lowrank.truncation import RankRule, kept_rank
from stiefel.rank_bounds import check_rank, is_whole
from stiefel.replacing import replace_module

RankChoice = int | Mapping[str, int] | RankRule | None
DEFAULT_RANK = 64


class Skipped(NamedTuple):
    """A layer that stays as it is."""

    name: str
    reason: str


class Conversion(NamedTuple):
    """The converted model and its account."""

    model: nn.Module
    ranks: dict[str, int]
    skipped: tuple[Skipped, ...]


def to_low_rank(
    model: nn.Module,
    rank: RankChoice = None,
    *,
    include: str | Sequence[str] = ("*",),
    exclude: str | Sequence[str] = (),
    keep_last: bool = True,
    dense: bool = False,
    keep_norm: bool = False,
    evaluation: Evaluation = "factored",
) -> Conversion:
    """Replace linear, 2-d convolution and attention layers of ``model`` in place.

    Args:
        model: any module; Hugging Face models, their ``Conv1D`` included.
        rank: one for all layers, one by layer name, a :class:`RankRule` read off each weight's
            singular values, or None for min(64, half the break-even).
        include: shell patterns on layer names; what matches none is left alone.
        exclude: patterns that override ``include``.
        keep_last: leave the last convertible layer, the head, as it is.
        dense: swap the layers but keep the whole weights for a dense warm-up; what ends it
            chooses the ranks: of ``rank`` only the names of a mapping count then.
        keep_norm: rescale S to the norm of the weight; for freshly drawn weights.
        evaluation: see :class:`LowRankLinear`.

    A layer stays, with its reason in the report, when it is frozen, tied to another, parametrized,
    half precision, of a type that is not known to be its parent's equal, or would not shrink; other
    modules with matrices of their own (embeddings, recurrent layers) are reported as well.

    Raises:
        InvalidInputError: a rank is out of range or given for no layer, a weight to be converted
            is not finite, or nothing was converted. The model is then as it was.
    """
    if evaluation not in get_args(Evaluation):
        raise InvalidInputError(
            f"unknown evaluation {evaluation!r}",
            field="/evaluation",
            fix="give factored, merged or auto",
        )
    include, exclude = _patterns(include), _patterns(exclude)
    found = _candidates(model)
    if isinstance(rank, Mapping):
        _check_names(rank, [name for name, _ in found])
    last = found[-1][0] if found and keep_last else None
    shared = Counter(id(p) for _, m in _all_modules(model) for p in m.parameters(recurse=False))
    ranks: dict[str, int] = {}
    skipped: list[Skipped] = []
    for name, module in found:
        reason = (
            _unwanted(name, include, exclude)
            or ("the last layer is kept" if name == last else None)
            or _unfit(module, shared)
        )
        verdict = reason or _rank_for(name, module, rank, dense)
        if isinstance(verdict, str):
            skipped.append(Skipped(name, verdict))
        else:
            ranks[name] = verdict
    skipped += _others(model, [module for _, module in found])
    # All verdicts come before the first change: a model that is refused stays as it was.
    for name, wanted in ranks.items():
        module = model.get_submodule(name)
        layer = _convert(module, wanted, dense, keep_norm, evaluation)
        replace_module(model, name, layer.train(module.training))
    if not ranks:
        raise InvalidInputError(
            "no layer was converted: " + "; ".join(f"{s.name}: {s.reason}" for s in skipped[:5]),
            code="nothing_converted",
            fix="check include and exclude, or choose a smaller rank",
        )
    take_ordinary_path(model)
    return Conversion(model, ranks, tuple(skipped))


def take_ordinary_path(model: nn.Module) -> None:
    """Keep ``nn.TransformerEncoder`` from its own path, which reads the weights of its layers.

    That of a low-rank layer would be multiplied out for it, in every pass.
    """
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
        if isinstance(module, nn.TransformerEncoderLayer):
            inner: tuple[nn.Module, ...] = (module.linear1, module.linear2)
            if not all(isinstance(layer, nn.Linear) for layer in inner):
                module.activation_relu_or_gelu = 0  # read by the choice of the path alone


def _patterns(given: str | Sequence[str]) -> Sequence[str]:
    return (given,) if isinstance(given, str) else given


def _all_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return list(model.named_modules())


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Layers of the kinds that can be converted; attention counts as one, without its insides."""
    found: list[tuple[str, nn.Module]] = []
    inside: set[int] = set()
    for name, module in _all_modules(model):
        if isinstance(module, nn.MultiheadAttention):
            inside |= {id(child) for child in module.modules() if child is not module}
        if id(module) in inside:
            continue
        if isinstance(
            module, nn.Linear | nn.Conv2d | nn.MultiheadAttention
        ) or is_transposed_linear(module):
            found.append((name, module))
    return found


def _others(model: nn.Module, found: Sequence[nn.Module]) -> list[Skipped]:
    """What else holds matrices: embeddings, recurrent layers, experts kept in one tensor."""
    inside = {id(part) for module in found for part in module.modules()}
    skipped = []
    for name, module in _all_modules(model):
        own = [p for p in module.parameters(recurse=False) if not is_lazy(p)]
        # What starts with 1, as (1, tokens, width), is a position or a token, not a matrix.
        matrices = [p for p in own if p.squeeze().ndim > 1 and len(p) > 1]
        if name and matrices and id(module) not in inside:
            kind = type(module).__name__
            known = isinstance(module, LowRankLayer | Factored)
            reason = "low-rank already" if known else f"no low-rank counterpart of {kind}"
            skipped.append(Skipped(name, reason))
    return skipped


def _unwanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    for pattern in exclude:
        if fnmatch.fnmatchcase(name, pattern):
            return f"excluded by {pattern!r}"
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return None
    return "matches no include pattern"


def _unfit(module: nn.Module, shared: Counter[int]) -> str | None:
    # Older ways to parametrize (prune, spectral_norm) put a tensor in the weight's place.
    computed = hasattr(module, "weight") and "weight" not in dict(module.named_parameters())
    if parametrize.is_parametrized(module) or computed:
        return "the weight is parametrized"
    known = (nn.Linear, nn.Conv2d, nn.MultiheadAttention)
    if type(module) not in known and not is_transposed_linear(module):
        return f"{type(module).__name__} is a subclass with a forward of its own"
    weights = [p for n, p in module.named_parameters() if "weight" in n and p.ndim > 1]
    if any(not p.requires_grad for p in weights):
        return "frozen"
    if any(shared[id(p)] > 1 for p in weights):
        return "the weight is tied to another layer's"
    if any(p.dtype not in (torch.float32, torch.float64) for p in weights):
        return f"the weight is {weights[0].dtype}; train float32 masters under autocast"
    return why_not(module) if isinstance(module, nn.MultiheadAttention) else None


def _matrices(module: nn.Module) -> list[Tensor]:
    if isinstance(module, nn.MultiheadAttention):
        return [linear.weight for linear in dense_projections(module).values()]
    if isinstance(module, nn.Conv2d):
        return [kernel_matrix(module)]
    return [as_linear(module).weight]


def _rank_for(name: str, module: nn.Module, rank: RankChoice, dense: bool) -> int | str:
    """The rank of a layer that can be converted, or why it has none."""
    matrices = [matrix.detach() for matrix in _matrices(module)]
    if not all(bool(matrix.isfinite().all()) for matrix in matrices):
        raise InvalidInputError(
            f"the weight of {name!r} holds NaN or infinity",
            code="non_finite_weights",
            tensor=name,
            fix="repair or exclude the layer before factorising it",
        )
    limit = min(min(matrix.shape[-2:]) for matrix in matrices)
    if isinstance(rank, Mapping) and name not in rank:
        return "no rank is given for it"
    if dense:
        return limit
    if isinstance(rank, Mapping):
        wanted = rank[name]
    elif isinstance(rank, RankRule):
        if not all(bool(matrix.any()) for matrix in matrices):
            return "the weight is zero: no rank describes it better than another"
        wanted = max(kept_rank(torch.linalg.svdvals(m), rank) for m in matrices)
    elif rank is None:
        half = min(break_even_rank(m.shape[-2], m.shape[-1]) for m in matrices) // 2
        wanted = max(1, min(DEFAULT_RANK, half))
    else:
        wanted = rank
    if not is_whole(wanted) or wanted < 1:
        n, m = matrices[0].shape[-2:]
        check_rank(wanted, n, m, name)
    wanted = int(wanted)
    return _not_smaller(module, wanted) or wanted


def _check_names(ranks: Mapping[str, int], names: Sequence[str]) -> None:
    unknown = sorted(ranks.keys() - set(names))
    if unknown:
        raise InvalidInputError(
            f"a rank is given for {unknown[0]!r}, which is no layer that can be converted",
            code="unknown_layer",
            tensor=unknown[0],
            fix=f"name layers such as {', '.join(names[:3])}" if names else None,
        )


def _not_smaller(module: nn.Module, rank: int) -> str | None:
    for matrix in _matrices(module):
        limit = break_even_rank(matrix.shape[-2], matrix.shape[-1])
        if rank > limit:
            n, m = matrix.shape[-2:]
            return f"rank {rank} would not shrink {n} x {m}: the break-even is {limit}"
    return None


def _convert(
    module: nn.Module, rank: int, dense: bool, keep_norm: bool, evaluation: Evaluation
) -> nn.Module:
    if isinstance(module, nn.MultiheadAttention):
        return LowRankMultiheadAttention.from_dense(
            module, None if dense else rank, evaluation=evaluation, keep_norm=keep_norm
        )
    if isinstance(module, nn.Conv2d):
        conv = LowRankConv2d.from_dense(
            module, 1 if dense else rank, keep_norm=keep_norm, evaluation=evaluation
        )
        if dense:
            conv.set_dense(kernel_matrix(module).clone())
        return conv
    source = as_linear(module)
    linear = LowRankLinear.from_dense(
        source, 1 if dense else rank, keep_norm=keep_norm, evaluation=evaluation
    )
    linear.transposed = is_transposed_linear(module)
    if dense:
        linear.set_dense(source.weight.detach().clone())
    return linear
