"""Weights to start from, loaded strictly."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank.renaming import pieces, renamed
from stiefel.specs.starting import check_fresh, foreign_weights, is_fresh


def load_weights(network: nn.Module, path: Path, *, fresh: Sequence[str] = ()) -> None:
    """Load uploaded weights strictly: every tensor of the network, no other, same shapes.

    Of tensors that are tied one is enough, as ``save_pretrained`` writes them; those of a body
    alone (``BertModel``) go where the network has its body; and names that transformers has for
    files alone (ViT: ``encoder.layer.0``) stand for those of the network.

    Args:
        network: changed in place.
        path: a safetensors file.
        fresh: shell patterns of tensors that stay as they were drawn, with those that are tied to
            them, and of tensors of the file that are left out.

    Raises:
        InvalidInputError: names the first tensor that is missing, unknown, of another shape or
            kind, not finite, or unlike the one that it is tied to.
    """
    try:
        given = load_file(path)
    except (SafetensorError, OSError) as error:
        raise foreign_weights("the file is not readable as safetensors") from error
    own = network.state_dict()
    given, tied = _named_as(network, given), tied_names(network)
    check_fresh(fresh, [*given, *own])
    drawn = {name for name in own if is_fresh(name, fresh)}
    drawn |= {name for pair in tied.items() if not drawn.isdisjoint(pair) for name in pair}
    given = {n: v for n, v in given.items() if n not in drawn and not is_fresh(n, fresh)}
    _complete(given, tied)
    for name, value in own.items():
        if name in drawn:
            given[name] = value
        elif name not in given:
            raise _absent(network, name, given)
        elif (reason := _unfit(given[name], value)) is not None:
            raise foreign_weights(f"tensor {name} {reason}", name)
    superfluous = _superfluous(network, given)
    if unknown := sorted(given.keys() - own.keys() - superfluous):
        raise foreign_weights(f"the network has no tensor {unknown[0]}", unknown[0])
    network.load_state_dict({name: given[name] for name in own})


def _named_as(network: nn.Module, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names of ``network``, where those of its files are others."""
    own = network.state_dict().keys()
    if not own & given.keys():  # a checkpoint of a network behind an adapter
        given = {name.removeprefix("inner."): value for name, value in given.items()}
    given = renamed(network, given)
    body = f"{getattr(network, 'base_model_prefix', '')}."
    if body == "." or any(name.startswith(body) for name in given):
        return given
    return {body + name if body + name in own else name: value for name, value in given.items()}


def _absent(network: nn.Module, name: str, given: Mapping[str, Tensor]) -> InvalidInputError:
    """The refusal of weights without the tensor ``name``."""
    piece = pieces(network, given).get(name)
    if piece is None:
        return foreign_weights(f"it has no tensor {name}", name)
    return InvalidInputError(
        f"weights: it has no tensor {name}, which transformers makes of {piece} "
        "by more than a change of name",
        code="weights_do_not_fit",
        fix="save the model under its own names: load it with from_pretrained, then "
        "safetensors.torch.save_model(model, 'model.safetensors')",
        tensor=name,
        field="/weights",
    )


def _superfluous(network: nn.Module, given: Iterable[str]) -> set[str]:
    """What older versions wrote and the network makes itself: positions, masks.

    A body's buffers may come without the body's name before them.
    """
    made = {name for name, _ in network.named_buffers()}
    made |= {name.partition(".")[2] for name in made}
    patterns: Iterable[str] = getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ()
    return {name for name in given if name in made or any(re.search(p, name) for p in patterns)}


def tied_names(network: nn.Module) -> dict[str, str]:
    """Every further name of a parameter that has several -> its first."""
    first: dict[int, str] = {}
    named = network.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def _complete(given: dict[str, Tensor], tied: Mapping[str, str]) -> None:
    """Fill in what is missing of tied tensors; where both are given they must be equal."""
    for name, first in tied.items():
        if name in given and first in given and not torch.equal(given[name], given[first]):
            detail = f"tensor {name} differs from {first}, to which this network ties it"
            raise foreign_weights(detail, name)
        for missing, other in ((name, first), (first, name)):
            if missing not in given and other in given:
                given[missing] = given[other]


def _unfit(given: Tensor, own: Tensor) -> str | None:
    """Why ``given`` cannot take the place of ``own``."""
    if given.shape != own.shape:
        return f"has shape {list(given.shape)}, not {list(own.shape)}"
    if _kind(given) != _kind(own):
        return f"has dtype {given.dtype}, the network's has {own.dtype}".replace("torch.", "")
    if not bool(given.to(own.dtype).isfinite().all()):
        return f"holds NaN, infinity or more than {own.dtype} can hold".replace("torch.", "")
    return None


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
