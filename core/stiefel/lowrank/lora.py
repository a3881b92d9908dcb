"""PiSSA: LoRA adapters that start from the leading singular directions of the weights.

The adapter takes the best rank-r part of W and the base keeps the rest: the model's function is
unchanged at the start, and training moves the directions that matter most. The adapter is written
in the layout that ``peft`` loads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.factored import balanced
from stiefel.lowrank.initial import spectral_factors
from stiefel.rank_bounds import check_rank


class Adapter(NamedTuple):
    """LoRA factors by layer: the layer computes W_base x + B A x."""

    rank: int
    A: dict[str, Tensor]  # (r, m)
    B: dict[str, Tensor]  # (n, r)


@torch.no_grad()
def split_pissa(model: nn.Module, names: Sequence[str], rank: int) -> Adapter:
    """Take the leading rank-r part out of the named linear layers of ``model``, in place.

    Args:
        model: its weights become the residual W - B A; on an error it is as it was.
        names: linear layers.
        rank: at most min(n, m) of every layer.

    Raises:
        InvalidInputError: a name is no linear layer, its weight is another layer's too or not
            finite, or the rank is out of range.

    Cost: one SVD per layer.

    Source: Meng et al., PiSSA, NeurIPS 2024, arXiv 2404.02948.
    """
    A: dict[str, Tensor] = {}
    B: dict[str, Tensor] = {}
    layers = {name: _linear_layer(model, name) for name in names}
    for name, layer in layers.items():
        check_rank(rank, layer.out_features, layer.in_features, name)
    for name, layer in layers.items():
        factors = spectral_factors(layer.weight.float(), rank)
        out, into = balanced(factors.left, factors.core, factors.right)
        A[name], B[name] = into.to(layer.weight.dtype), out.to(layer.weight.dtype)
    for name, layer in layers.items():
        layer.weight.sub_((B[name].float() @ A[name].float()).to(layer.weight.dtype))
    return Adapter(rank, A, B)


def _linear_layer(model: nn.Module, name: str) -> nn.Linear:
    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, nn.Linear):
        kind = "not in the model" if layer is None else f"a {type(layer).__name__}"
        raise InvalidInputError(
            f"{name!r} is {kind}, not a linear layer",
            code="unsupported_layer",
            tensor=name,
            fix="name linear layers only",
        )
    if not bool(layer.weight.isfinite().all()):
        raise InvalidInputError(
            f"the weight of {name!r} holds NaN or infinity",
            code="non_finite_weights",
            tensor=name,
            fix="repair it or leave the layer out",
        )
    users = _users(model, layer.weight)
    if len(users) > 1:
        raise InvalidInputError(
            f"the weight of {name!r} is also that of {[u for u in users if u != f'{name}.weight']}",
            code="tied_weight",
            tensor=name,
            fix="leave the layer out, or give it a weight of its own",
        )
    return layer


def _users(model: nn.Module, weight: Tensor) -> list[str]:
    """Names under which the model holds this tensor."""
    named = model.named_parameters(remove_duplicate=False)
    return [name for name, tensor in named if tensor is weight]


def save_adapter(adapter: Adapter, folder: str | Path, *, base: str | None = None) -> None:
    """Write ``adapter_config.json`` and ``adapter_model.safetensors`` for ``peft``.

    Args:
        adapter: from :func:`split_pissa`. alpha equals the rank, so that the scale is 1 and
            no later change of rank can rescale the function.
        folder: made if absent.
        base: name or path of the residual model, which must be kept with the adapter.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        # A list would be matched by the ends of names, an expression by whole names.
        "target_modules": "|".join(re.escape(name) for name in sorted(adapter.A)),
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {
        f"base_model.model.{name}.lora_{letter}.weight": value.contiguous()
        for letter, part in (("A", adapter.A), ("B", adapter.B))
        for name, value in part.items()
    }
    safetensors.torch.save_file(tensors, folder / "adapter_model.safetensors")
