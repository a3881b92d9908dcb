"""Names of a file against names of the model, where Hugging Face keeps two sets of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping

from torch import Tensor, nn

FACTORS = ("factor_out", "factor_in", "U", "S", "V")


def renamed(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under the model's names.

    ``save_pretrained`` writes the names that a model's files have always had, which need not be
    those of its modules (ViT: ``encoder.layer.0.attention.attention.query`` for
    ``layers.0.attention.q_proj``). Factors follow the weight they stand for. A name that the model
    has, or that cannot be told, stays; so do all names of models of other makers.
    """
    rename = _rule(model)
    if rename is None:
        return dict(tensors)
    own = model.state_dict(keep_vars=True)
    result = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        weight = f"{stem}.weight" if last in FACTORS else name
        found = name if name in own or weight in own else rename(weight)
        if found in own and found != name:
            name = f"{found.removesuffix('.weight')}.{last}" if last in FACTORS else found
        result[name] = tensor
    return result


def _rule(model: nn.Module) -> Callable[[str], str] | None:
    """How transformers renames what it reads for this model; None for any other model.

    A model of transformers has imported it. Versions before 5 have no such rules.
    """
    library = sys.modules.get("transformers")
    if library is None or not isinstance(model, library.PreTrainedModel):
        return None
    try:
        mapping = importlib.import_module("transformers.conversion_mapping")
        loading = importlib.import_module("transformers.core_model_loading")
        rules = [
            rule
            for rule in mapping.get_model_conversion_mapping(model)
            if isinstance(rule, loading.WeightRenaming)
        ]
        rename = loading.rename_source_key
    except (ImportError, AttributeError):
        return None
    own = model.state_dict(keep_vars=True)
    return lambda name: str(rename(name, rules, [], model.base_model_prefix, own)[0])
