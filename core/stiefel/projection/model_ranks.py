"""Which rank every layer of a model gets, given by name or made of one budget."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from stiefel.break_even import break_even_rank
from stiefel.conv1d import is_transposed_linear
from stiefel.errors import InvalidInputError
from stiefel.projection.rank_rules import ranks_for_budget
from stiefel.projection.whitening import Root, SecondMoment, moment_root, whitened_values
from stiefel.rank_bounds import check_rank


def ranks_within(
    model: nn.Module,
    moments: Mapping[str, SecondMoment],
    budget: int | None,
    ranks: Mapping[str, int] | None,
    *,
    correct_bias: bool,
) -> Mapping[str, int]:
    """The given ranks, or those that the greedy rule makes of the budget, less the full ones."""
    if (budget is None) == (ranks is None):
        raise InvalidInputError("give either budget or ranks", code="bad_budget")
    if ranks is not None:
        if wrong := sorted(ranks.keys() ^ moments.keys()):
            what = "no rank" if wrong[0] in moments else "no moment"
            raise InvalidInputError(
                f"there is {what} for {wrong[0]!r}",
                code="rank_mismatch",
                tensor=wrong[0],
                fix="give ranks for exactly the layers whose moments were collected",
            )
        for name in moments:
            n, m = matrix_of(model.get_submodule(name)).shape
            check_rank(ranks[name], n, m, name)
        return {name: int(ranks[name]) for name in moments}
    assert budget is not None
    roots = roots_of(moments, centring(model, moments, correct_bias))
    weights = {name: matrix_of(model.get_submodule(name)) for name in moments}
    spectra = {n: whitened_values(w, roots[n]).tolist() for n, w in weights.items()}
    shapes = {name: (w.shape[0], w.shape[1]) for name, w in weights.items()}
    # A layer whose factors are no smaller than its weight keeps the weight.
    least = sum(min(n + m, n * m) for n, m in shapes.values())
    if budget < least:
        raise InvalidInputError(
            f"a budget of {budget} is less than the {least} numbers that rank 1 needs everywhere",
            code="bad_budget",
            field="/budget",
            fix=f"give at least {least}, or moments of fewer layers",
        )
    spread = ranks_for_budget(spectra, shapes, budget)
    return {n: rank for n, rank in spread.items() if rank <= break_even_rank(*shapes[n])}


def centring(
    model: nn.Module, moments: Mapping[str, SecondMoment], correct_bias: bool
) -> dict[str, bool]:
    """Layers whose bias can take up a change of the mean."""
    return {
        name: correct_bias and getattr(model.get_submodule(name), "bias", None) is not None
        for name in moments
    }


def roots_of(moments: Mapping[str, SecondMoment], centre: Mapping[str, bool]) -> dict[str, Root]:
    """One factorisation per distinct moment and centring."""
    known: dict[tuple[int, bool], Root] = {}
    roots = {}
    for name, moment in moments.items():
        key = id(moment), centre[name]
        if key not in known:
            inner = moment.centred() if centre[name] else moment.matrix
            known[key] = moment_root(inner, name)
        roots[name] = known[key]
    return roots


def matrix_of(module: nn.Module) -> Tensor:
    """The layer's weight as ``(n, m)``."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    matrix = weight.detach().reshape(weight.shape[0], -1)
    return matrix.mT if is_transposed_linear(module) else matrix
