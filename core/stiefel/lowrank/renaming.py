"""Names of a file against names of the model, where Hugging Face keeps two sets of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

FACTORS = ("factor_out", "factor_in", "U", "S", "V")


def renamed(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under the model's names.

    ``save_pretrained`` writes the names that a model's files have always had, which need not be
    those of its modules (ViT: ``encoder.layer.0.attention.attention.query`` for
    ``layers.0.attention.q_proj``). Factors follow the weight they stand for. A name that the model
    has, or that cannot be told, stays; so do all names of models of other makers, and the second of
    two names for one tensor.
    """
    rules = _rules(model)
    if rules is None:
        return dict(tensors)
    own = model.state_dict(keep_vars=True)
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight" if last in FACTORS else name
        found = name if name in own or weight in own else rules.whole(weight)
        if found in own and found != name:
            other = f"{found.removesuffix('.weight')}.{last}" if last in FACTORS else found
            name = name if other in tensors or other in result else other
        result[name] = tensor
    return result


def pieces(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Weights of ``model`` that files have in other pieces -> the first piece in ``tensors``.

    transformers stacks the experts of a mixture, which its files keep one by one, and cuts in two
    what they keep as one. Such weights take more than a change of name.
    """
    rules = _rules(model)
    if rules is None:
        return {}
    own = model.state_dict(keep_vars=True)
    found: dict[str, str] = {}
    for name in tensors:
        if name not in own and (whole := rules.part(name)) in own:
            found.setdefault(whole, name)
    return found


class _Rules(NamedTuple):
    """What a name in a file becomes in the model."""

    whole: Callable[[str], str]  # of a tensor that is there as it is
    part: Callable[[str], str]  # of one that may also be a piece of another


def _rules(model: nn.Module) -> _Rules | None:
    """How transformers renames what it reads for this model; None for any other model.

    A model of transformers has imported it. Versions before 5 have no such rules.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    try:
        mapping = importlib.import_module("transformers.conversion_mapping")
        loading = importlib.import_module("transformers.core_model_loading")
        rules = mapping.get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, loading.WeightConverter)]
        rename = loading.rename_source_key
    except (ImportError, AttributeError):
        return None
    own, body = model.state_dict(keep_vars=True), model.base_model_prefix

    def rule(conversions: list[object]) -> Callable[[str], str]:
        return lambda name: str(rename(name, renamings, conversions, body, own)[0])

    return _Rules(whole=rule([]), part=rule(converters))
