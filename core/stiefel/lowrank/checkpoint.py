"""Load a factored checkpoint into the architecture it came from, with one call."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from stiefel.conv1d import as_linear, is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.lowrank.attention import LowRankMultiheadAttention, dense_projections
from stiefel.lowrank.convert import take_ordinary_path
from stiefel.lowrank.convolution import LowRankConv2d, kernel_matrix
from stiefel.lowrank.factored import (
    Factored,
    FactoredConv1D,
    FactoredConv2d,
    FactoredLinear,
    product_of,
)
from stiefel.lowrank.linear import LowRankLinear
from stiefel.lowrank.renaming import renamed
from stiefel.lowrank.steps import Factors
from stiefel.lowrank.stored import is_shard, read_tensors
from stiefel.replacing import replace_module

PAIR = (".factor_out", ".factor_in")
TRIPLE = (".U", ".S", ".V")


class Loaded(NamedTuple):
    """The model and what its layers became."""

    model: nn.Module
    factored: tuple[str, ...]  # two thin factors
    low_rank: tuple[str, ...]  # U S V^T, ready to train on
    merged: tuple[str, ...]  # tensors whose module has no factored form: their product was loaded


def load_factored(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, strict: bool = True
) -> Loaded:
    """Load factors into ``model``, swapping the layers they belong to.

    Args:
        model: the original architecture, freshly built; Hugging Face models included, whose
            files may have other names than their modules.
        source: a safetensors file; of a checkpoint in shards its index (``….index.json``), with the
            shards beside it; a folder that holds ``model.safetensors`` or else one index; or a
            mapping by name. Factors are ``N.factor_out`` and ``N.factor_in``, as the method
            ``factorize.low_rank`` and ``export`` write them, or ``N.U``, ``N.S``, ``N.V``, as
            training writes them. All other tensors load as usual.
        strict: raise on missing and unexpected names. Weights tied to a loaded one do not count
            as missing.

    Raises:
        InvalidInputError: names or shapes do not fit the model, which is then as it was; or files
            that cannot be read, or are not all there.
        FileNotFoundError: there is nothing at ``source``.
    """
    stored = source if isinstance(source, Mapping) else read_tensors(Path(source))
    tensors = renamed(model, stored)
    swaps = _Swaps(model)
    try:
        attended = _fill_attention(model, tensors)
        factored, merged = _place_pairs(swaps, tensors)
        low_rank = _place_triples(swaps, tensors)
        _check_fit(model, tensors, strict, source)
    except BaseException:
        swaps.undo()
        raise
    model.load_state_dict(tensors, strict=False)
    take_ordinary_path(model)
    return Loaded(model, tuple(factored), tuple(low_rank), (*attended, *merged))


class _Swaps:
    """Layers put in the place of others, and back again."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._olds: list[tuple[str, nn.Module]] = []

    def put(self, name: str, old: nn.Module, new: nn.Module) -> None:
        """Let ``new`` stand for ``old``, in its mode."""
        replace_module(self.model, name, new.train(old.training))
        self._olds.append((name, old))

    def undo(self) -> None:
        """Leave the model as it was."""
        for name, old in reversed(self._olds):
            replace_module(self.model, name, old)


def _check_fit(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    strict: bool,
    source: str | Path | Mapping[str, Tensor],
) -> None:
    try:
        result = _load_shapes(model, tensors)
    except RuntimeError as error:
        raise InvalidInputError(
            str(error), code="checkpoint_mismatch", fix="load into the model it was made from"
        ) from error
    missing = sorted(set(result.missing_keys) - _tied_to_loaded(model, tensors))
    if strict and (missing or result.unexpected_keys):
        if missing and not isinstance(source, Mapping) and is_shard(Path(source)):
            raise InvalidInputError(
                f"{source} is one shard of several; missing: {missing[:5]}",
                code="checkpoint_mismatch",
                fix="give the folder of all shards, or their index (….safetensors.index.json)",
            )
        raise InvalidInputError(
            f"missing: {missing[:5]}; unexpected: {result.unexpected_keys[:5]}",
            code="checkpoint_mismatch",
            fix="load into the architecture the checkpoint was made from; if a library saved it "
            "under names of its own, save model.state_dict() instead",
        )


def _load_shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """What ``load_state_dict`` says of names and shapes; no number of the model is changed."""
    owned: list[dict[str, Any]] = [
        own for m in model.modules() for own in (m._parameters, m._buffers)
    ]
    before = [dict(own) for own in owned]
    try:
        for own in owned:
            own.update({name: _hollow(tensor) for name, tensor in own.items()})
        hollow = {name: _hollow(tensor) for name, tensor in tensors.items()}
        return model.load_state_dict(hollow, strict=False)
    finally:
        for own, held in zip(owned, before, strict=True):
            own.clear()
            own.update(held)


def _hollow(tensor: Any) -> Any:
    if not isinstance(tensor, Tensor):  # no bias, or a module's extra state
        return tensor
    if is_lazy(tensor):  # it takes its shape from what it loads
        return type(tensor)(device="meta", dtype=tensor.dtype)  # type: ignore[call-arg]
    hollow = tensor.detach().to("meta")
    return (
        nn.Parameter(hollow, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else hollow
    )


def _stems(tensors: Mapping[str, Tensor], suffixes: tuple[str, ...]) -> list[str]:
    first = suffixes[0]
    return [
        name.removesuffix(first)
        for name in tensors
        if name.endswith(first) and all(name.removesuffix(first) + s in tensors for s in suffixes)
    ]


def _fill_attention(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Give exported projections the names that ``nn.MultiheadAttention`` has for them."""
    filled = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.MultiheadAttention):
            continue
        start = f"{name}." if name else ""
        for part in ("in_proj", "q_proj", "k_proj", "v_proj", "out_proj"):
            stem = start + part
            own = f"{stem}.weight" if part == "out_proj" else f"{stem}_weight"
            if all(stem + suffix in tensors for suffix in PAIR):
                tensors[own] = product_of(*(tensors.pop(stem + suffix) for suffix in PAIR))
                filled.append(own)
            elif own != f"{stem}.weight" and f"{stem}.weight" in tensors:
                tensors[own] = tensors.pop(f"{stem}.weight")
        stems = [start + part for part in ("in_proj", "q_proj", "k_proj", "v_proj")]
        # Beside U, S and V the bias belongs to a low-rank projection, which has one of its own.
        exported = [s for s in stems if f"{s}.bias" in tensors and f"{s}.U" not in tensors]
        if found := [tensors.pop(f"{stem}.bias") for stem in exported]:
            tensors[f"{start}in_proj_bias"] = torch.cat(found)
    return filled


def _place_pairs(swaps: _Swaps, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    factored, merged = [], []
    for stem in _stems(tensors, PAIR):
        module = dict(swaps.model.named_modules(remove_duplicate=False)).get(stem)
        weight = getattr(module, "weight", None)
        outer, inner = (_like(weight, tensors[stem + suffix]) for suffix in PAIR)
        _check_ranks(stem, module, outer, inner)
        _check_product(stem, weight, outer, inner)
        if module is not None and (new := _factored(module, outer, inner)) is not None:
            if new is not module:
                swaps.put(stem, module, new)
            tensors[stem + PAIR[0]], tensors[stem + PAIR[1]] = outer, inner
            factored.append(stem)
        else:
            del tensors[stem + PAIR[0]], tensors[stem + PAIR[1]]
            own = stem if module is None else f"{stem}.weight"
            tensors[own] = product_of(outer, inner)
            merged.append(own)
    return factored, merged


def _like(weight: object, factor: Tensor) -> Tensor:
    """The factor in the dtype and on the device of the weight that it helps to make."""
    return factor.to(weight) if isinstance(weight, Tensor) else factor


def _check_ranks(stem: str, module: nn.Module | None, outer: Tensor, inner: Tensor) -> None:
    ranks = [side.shape[k] if side.ndim > k else 0 for side, k in ((outer, 1), (inner, 0))]
    # A convolution has that many rows of factor_in in every group, or in all where its kernel was
    # factored as a whole.
    groups = module.groups if isinstance(module, nn.Conv2d | FactoredConv2d) else 1
    if ranks[1] not in (ranks[0], ranks[0] * groups) or math.prod(outer.shape[2:]) != 1:
        raise InvalidInputError(
            f"the factors of {stem!r} have ranks {ranks[0]} and {ranks[1]}",
            code="checkpoint_mismatch",
            fix="take both from the same file",
            tensor=f"{stem}{PAIR[0]}",
        )


def _check_product(stem: str, weight: object, outer: Tensor, inner: Tensor) -> None:
    shape = (outer.shape[0], *inner.shape[1:])
    if isinstance(weight, Tensor) and tuple(weight.shape) != shape:
        raise InvalidInputError(
            f"the factors of {stem!r} make {list(shape)}, its weight is {list(weight.shape)}",
            code="checkpoint_mismatch",
            fix="load into the architecture the checkpoint was made from",
            tensor=f"{stem}{PAIR[0]}",
        )


def _factored(module: nn.Module, outer: Tensor, inner: Tensor) -> nn.Module | None:
    """The layer of two factors in the place of ``module``; None where there is none of its kind."""
    if isinstance(module, Factored):
        return module if module.fits(outer, inner) else None
    if is_transposed_linear(module):  # the file factors the stored matrix, which is W^T here
        return FactoredConv1D(outer.clone(), inner.clone(), as_linear(module).bias)
    if isinstance(module, nn.Linear):
        return FactoredLinear(outer.clone(), inner.clone(), module.bias)
    if isinstance(module, nn.Conv2d) and outer.shape[1] * module.groups == inner.shape[0]:
        return FactoredConv2d(module, outer.clone(), inner.clone(), module.bias)
    return None  # among others a grouped convolution whose kernel was factored as a whole


def _place_triples(swaps: _Swaps, tensors: Mapping[str, Tensor]) -> list[str]:
    placed = []
    for stem in _stems(tensors, TRIPLE):
        parent = stem.rpartition(".")[0]
        modules = dict(swaps.model.named_modules(remove_duplicate=False))
        module, owner = modules.get(stem), modules.get(parent)
        new: nn.Module | None = None
        if isinstance(owner, nn.MultiheadAttention):
            module, stem_of_new = owner, parent
            projections = dense_projections(owner).items()
            new = LowRankMultiheadAttention(owner, {n: _empty_linear(p) for n, p in projections})
        elif isinstance(module, nn.Conv2d):
            empty = _empty_factors(kernel_matrix(module))
            new, stem_of_new = LowRankConv2d(module, empty, module.bias), stem
        elif isinstance(module, nn.Linear) or (module and is_transposed_linear(module)):
            new, stem_of_new = _empty_linear(as_linear(module)), stem
            new.transposed = is_transposed_linear(module)
        if new is not None and module is not None:
            swaps.put(stem_of_new, module, new)
        placed.append(stem)
    return placed


def _empty_linear(like: nn.Linear) -> LowRankLinear:
    return LowRankLinear.from_factors(_empty_factors(like.weight), like.bias)


def _empty_factors(like: Tensor) -> Factors:
    """Factors of rank 1 for a matrix of this shape, to be filled by loading at any rank."""
    *groups, n, m = like.shape
    return Factors(*(like.new_zeros(*groups, *shape) for shape in ((n, 1), (1, 1), (m, 1))))


def _tied_to_loaded(model: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Names whose storage is that of a loaded name; checkpoints keep one of them."""
    own = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in own.items() if name in tensors}
    return {name for name, tensor in own.items() if id(tensor) in loaded}
