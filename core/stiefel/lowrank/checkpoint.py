"""Load a factored checkpoint into the architecture it came from, with one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
from torch import Tensor, nn

from stiefel.conv1d import as_linear, is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.lowrank.attention import LowRankMultiheadAttention
from stiefel.lowrank.convert import replace_module
from stiefel.lowrank.convolution import LowRankConv2d
from stiefel.lowrank.factored import FactoredConv2d, FactoredLinear, product_of
from stiefel.lowrank.linear import LowRankLinear

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
        model: the original architecture, freshly built; Hugging Face models included.
        source: a safetensors file or a mapping by name. Factors are ``N.factor_out`` and
            ``N.factor_in``, as the method ``factorize.low_rank`` and ``export`` write them, or
            ``N.U``, ``N.S``, ``N.V``, as training writes them. All other tensors load as usual.
        strict: raise on missing and unexpected names. Weights tied to a loaded one do not count
            as missing.

    Raises:
        InvalidInputError: names or shapes do not fit the model.
    """
    tensors = dict(source) if isinstance(source, Mapping) else safetensors.torch.load_file(source)
    factored, merged = _place_pairs(model, tensors)
    low_rank = _place_triples(model, tensors)
    try:
        result = model.load_state_dict(tensors, strict=False)
    except RuntimeError as error:
        raise InvalidInputError(
            str(error), code="checkpoint_mismatch", fix="load into the model it was made from"
        ) from error
    missing = sorted(set(result.missing_keys) - _tied_to_loaded(model, tensors))
    if strict and (missing or result.unexpected_keys):
        raise InvalidInputError(
            f"missing: {missing[:5]}; unexpected: {result.unexpected_keys[:5]}",
            code="checkpoint_mismatch",
            fix="load into the architecture the checkpoint was made from",
        )
    return Loaded(model, tuple(factored), tuple(low_rank), tuple(merged))


def _stems(tensors: Mapping[str, Tensor], suffixes: tuple[str, ...]) -> list[str]:
    first = suffixes[0]
    return [
        name.removesuffix(first)
        for name in tensors
        if name.endswith(first) and all(name.removesuffix(first) + s in tensors for s in suffixes)
    ]


def _place_pairs(model: nn.Module, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    factored, merged = [], []
    modules = dict(model.named_modules())
    for stem in _stems(tensors, PAIR):
        outer, inner = (tensors[stem + suffix] for suffix in PAIR)
        module = modules.get(stem)
        if isinstance(module, FactoredLinear | FactoredConv2d):
            module = None if module.factor_in.shape != inner.shape else module
            factored.append(stem)
        elif module is not None and is_transposed_linear(module):
            # The file factors the stored matrix, which is W^T here.
            outer, inner = inner.T.contiguous(), outer.T.contiguous()
            tensors[stem + PAIR[0]], tensors[stem + PAIR[1]] = outer, inner
            new: nn.Module = FactoredLinear(outer.clone(), inner.clone(), as_linear(module).bias)
            replace_module(model, stem, new.train(module.training))
            factored.append(stem)
        elif isinstance(module, nn.Linear):
            new = FactoredLinear(outer.clone(), inner.clone(), module.bias)
            replace_module(model, stem, new.train(module.training))
            factored.append(stem)
        elif isinstance(module, nn.Conv2d):
            new = FactoredConv2d(module, outer.clone(), inner.clone(), module.bias)
            replace_module(model, stem, new.train(module.training))
            factored.append(stem)
        else:
            del tensors[stem + PAIR[0]], tensors[stem + PAIR[1]]
            own = stem if module is None else f"{stem}.weight"
            tensors[own] = product_of(outer, inner)
            merged.append(own)
    return factored, merged


def _place_triples(model: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    placed = []
    for stem in _stems(tensors, TRIPLE):
        parent = stem.rpartition(".")[0]
        modules = dict(model.named_modules())
        module, owner = modules.get(stem), modules.get(parent)
        if isinstance(owner, nn.MultiheadAttention):
            replace_module(model, parent, LowRankMultiheadAttention.from_dense(owner, 1))
        elif isinstance(module, nn.Conv2d):
            replace_module(model, stem, LowRankConv2d.from_dense(module, 1))
        elif isinstance(module, nn.Linear) or (module and is_transposed_linear(module)):
            replace_module(model, stem, LowRankLinear.from_dense(as_linear(module), 1))
        placed.append(stem)
    return placed


def _tied_to_loaded(model: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Names whose storage is that of a loaded name; checkpoints keep one of them."""
    own = model.state_dict(keep_vars=True)
    loaded = {id(tensor) for name, tensor in own.items() if name in tensors}
    return {name for name, tensor in own.items() if id(tensor) in loaded}
