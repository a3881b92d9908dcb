"""Which layers a training method will constrain, and why it leaves the others; without torch.

Says of a layer table what :func:`stiefel.lowrank.convert.to_low_rank` and
:func:`stiefel.training.unitary.swap_layers` decide on the built network, in the same words; a test
holds the two against each other for every family.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from stiefel.break_even import break_even_rank
from stiefel.errors import InvalidInputError
from stiefel.specs.layers import Layer, Shape
from stiefel.specs.train_low_rank import LowRankTrainingSpec, TrainDlrtSpec
from stiefel.specs.train_projunn import TrainProjunnSpec
from stiefel.specs.training import TrainingSpec

DEFAULT_RANK = 64
OWN_TAKEN = "the network has unitary layers of its own; name this one in include to add it"
_SWAPPED = ("Linear", "Conv2d")  # of the kinds that the families' own networks have
_OWN = ("OrthogonalRNN", "FourierConv2d")


@dataclass(frozen=True)
class PlannedLayer:
    """A layer with a weight matrix, and what becomes of it.

    Attributes:
        layer: what it is.
        constraint: ``orthogonal``, ``unitary``, ``low_rank``; None where it stays as it is.
        rank: where training starts, for ``low_rank`` by DLRT.
        reason: why it stays as it is.
    """

    layer: Layer
    constraint: str | None = None
    rank: int | None = None
    reason: str | None = None


def select_layers(
    spec: TrainingSpec, table: Sequence[Layer], *, sized: bool = True
) -> list[PlannedLayer]:
    """Return every layer that has a weight matrix, in the network's order.

    Args:
        spec: names the constraint and its patterns.
        table: of the network.
        sized: whether the shapes in ``table`` are true; without them only names decide.

    Raises:
        InvalidInputError: a pattern matches no layer (``pattern_matches_nothing``), or nothing
            is left to constrain (``nothing_converted``).
    """
    found = [layer for layer in table if layer.name and layer.matrix is not None]
    if isinstance(spec, LowRankTrainingSpec):
        check_patterns([layer.name for layer in found], spec.include, spec.exclude)
        planned = _low_rank(spec, found, sized)
    elif isinstance(spec, TrainProjunnSpec):
        check_patterns([layer.name for layer in found], spec.include or (), spec.exclude)
        planned = _unitary(spec, found)
    else:
        return [PlannedLayer(layer, reason=f"{spec.method} constrains no layer") for layer in found]
    if sized and not any(item.constraint for item in planned):
        reasons = "; ".join(f"{item.layer.name}: {item.reason}" for item in planned[:5])
        raise InvalidInputError(
            f"no layer can be constrained: {reasons}",
            code="nothing_converted",
            fix="check include and exclude",
            field="/include",
        )
    return planned


def check_patterns(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> None:
    """Refuse the first pattern that matches none of the layers ``names``.

    Raises:
        InvalidInputError: ``pattern_matches_nothing``, with a pointer to the pattern.
    """
    for field, patterns in (("include", include), ("exclude", exclude)):
        for position, pattern in enumerate(patterns):
            if not any(fnmatchcase(name, pattern) for name in names):
                close = get_close_matches(pattern, names, n=3, cutoff=0.3) or list(names[:8])
                raise InvalidInputError(
                    f"the pattern {pattern!r} matches none of the {len(names)} layers",
                    code="pattern_matches_nothing",
                    fix=f"Layers are called, for example: {', '.join(close)}.",
                    field=f"/{field}/{position}",
                )


def flat(shape: Shape) -> tuple[int, int]:
    """Rows and columns of a weight read as one matrix, outputs first."""
    return shape[0], math.prod(shape[1:])


def _low_rank(spec: LowRankTrainingSpec, found: list[Layer], sized: bool) -> list[PlannedLayer]:
    candidates = [layer for layer in found if layer.kind in _SWAPPED]
    last = candidates[-1] if candidates and spec.keep_last else None
    return [
        _factorised(spec, layer, last=layer is last, sized=sized)
        if layer.kind in _SWAPPED
        else PlannedLayer(layer, reason=f"no low-rank counterpart of {layer.kind}")
        for layer in found
    ]


def _factorised(
    spec: LowRankTrainingSpec, layer: Layer, *, last: bool, sized: bool
) -> PlannedLayer:
    assert layer.matrix is not None
    n, m = flat(layer.matrix)
    rank = None
    if sized and isinstance(spec, TrainDlrtSpec) and spec.warm_up is None:
        half = break_even_rank(n, m) // 2
        rank = spec.initial_rank or max(1, min(DEFAULT_RANK, half))
    reason = (
        _unwanted(layer.name, spec.include, spec.exclude)
        or ("the last layer is kept" if last else None)
        or (None if rank is None else _not_smaller(rank, n, m))
    )
    if reason:
        return PlannedLayer(layer, reason=reason)
    return PlannedLayer(layer, "low_rank", rank)


def _unwanted(name: str, include: Sequence[str], exclude: Sequence[str]) -> str | None:
    for pattern in exclude:
        if fnmatchcase(name, pattern):
            return f"excluded by {pattern!r}"
    if any(fnmatchcase(name, pattern) for pattern in include):
        return None
    return "matches no include pattern"


def _not_smaller(rank: int, n: int, m: int) -> str | None:
    limit = break_even_rank(n, m)
    if rank <= limit:
        return None
    return f"rank {rank} would not shrink {n} x {m}: the break-even is {limit}"


def _unitary(spec: TrainProjunnSpec, found: list[Layer]) -> list[PlannedLayer]:
    own = any(layer.kind in _OWN for layer in found)
    linear = [layer.name for layer in found if layer.kind == "Linear"]
    head = linear[-1:] if spec.include is None else []
    planned = []
    for layer in found:
        if layer.kind in _OWN:
            constraint = "unitary" if layer.complex else "orthogonal"
            planned.append(PlannedLayer(layer, constraint))
        elif layer.kind not in _SWAPPED:
            planned.append(PlannedLayer(layer, reason=f"no orthogonal counterpart of {layer.kind}"))
        elif spec.include is None and own:
            planned.append(PlannedLayer(layer, reason=OWN_TAKEN))
        elif not any(fnmatchcase(layer.name, pattern) for pattern in spec.include or ("*",)):
            planned.append(PlannedLayer(layer, reason="not included by name"))
        elif any(fnmatchcase(layer.name, pattern) for pattern in (*spec.exclude, *head)):
            planned.append(PlannedLayer(layer, reason="excluded by name"))
        else:
            planned.append(PlannedLayer(layer, "orthogonal"))
    return planned
