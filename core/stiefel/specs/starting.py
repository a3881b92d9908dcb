"""Whether uploaded weights are those of the network, from their header alone; no torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from stiefel.errors import InvalidInputError
from stiefel.specs.data_facts import Source
from stiefel.specs.dtypes import CONVERTIBLE
from stiefel.specs.header import read_table
from stiefel.specs.layers import Layer

#: Names of tensors that count and are whole numbers.
COUNTERS = ("num_batches_tracked",)


def check_weights(
    source: Source, table: Sequence[Layer] | None, *, fresh: Sequence[str] = ()
) -> None:
    """Refuse weights of another network from their header alone.

    Args:
        source: the file.
        table: the network's layers; None where only the worker knows them.
        fresh: shell patterns of tensors that need not fit.

    Raises:
        InvalidInputError: ``weights_do_not_fit``, naming the first tensor that is missing, of
            another shape, or unknown; or what makes the file no safetensors.
    """
    try:
        given = read_table(*source).tensors
    except InvalidInputError as error:
        raise foreign_weights(error.detail) from error
    if table is None:
        return
    own: dict[str, tuple[int, ...]] = {}
    for layer in table:
        own |= layer.stored()
    check_fresh(fresh, [*given, *own])
    for name, shape in own.items():
        if is_fresh(name, fresh):
            continue
        if name not in given:
            raise foreign_weights(f"it has no tensor {name}", name)
        if tuple(given[name].shape) != shape:
            detail = f"tensor {name} has shape {list(given[name].shape)}, not {list(shape)}"
            raise foreign_weights(detail, name)
        if given[name].dtype not in CONVERTIBLE and not name.endswith(COUNTERS):
            detail = f"tensor {name} has dtype {given[name].dtype}, which is no floating point"
            raise foreign_weights(detail, name)
    if unknown := sorted(n for n in given.keys() - own.keys() if not is_fresh(n, fresh)):
        raise foreign_weights(f"the network has no tensor {unknown[0]}", unknown[0])


def foreign_weights(detail: str, tensor: str | None = None) -> InvalidInputError:
    """The refusal of weights to start from."""
    return InvalidInputError(
        f"weights: {detail}",
        code="weights_do_not_fit",
        fix="upload weights of the network that the spec describes, or name in fresh what is to be "
        "drawn anew or left out",
        tensor=tensor,
        field="/weights",
    )


def is_fresh(name: str, fresh: Sequence[str]) -> bool:
    """Whether a tensor is drawn anew instead of loaded."""
    return any(fnmatchcase(name, pattern) for pattern in fresh)


def check_fresh(fresh: Sequence[str], names: Iterable[str]) -> None:
    """Refuse the first pattern that matches none of ``names``, the network's last."""
    own = list(names)
    for position, pattern in enumerate(fresh):
        if not any(fnmatchcase(name, pattern) for name in own):
            raise InvalidInputError(
                f"the pattern {pattern!r} matches no tensor of the network or of the weights",
                code="pattern_matches_nothing",
                fix=f"Tensors are called, for example: {', '.join(own[-3:])}.",
                field=f"/fresh/{position}",
            )
