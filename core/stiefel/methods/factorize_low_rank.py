"""``factorize.low_rank``: the best product of two thin matrices, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stiefel.methods.bias_correction import BiasCorrection, corrected_biases
from stiefel.methods.conversion import (
    Convert,
    Converted,
    NewTensor,
    Task,
    Workshop,
    convert_checkpoint,
    read_finite,
)
from stiefel.methods.decomposers import ByData, ByWeights, Decomposer, Decomposition
from stiefel.methods.moments import Moments, opened_moments
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.projection.low_rank import merge, relative_distance
from stiefel.projection.rank_rules import (
    rank_for_energy,
    rank_for_ratio,
    rank_for_tolerance,
    ranks_for_budget,
)
from stiefel.specs.factorize_low_rank import UNKNOWN, FactorizeLowRankSpec
from stiefel.specs.plan import Planned
from stiefel.specs.rank_rules import BudgetRule, EnergyRule, RatioRule, ShareRule, ToleranceRule
from stiefel.specs.treatment import Skip
from stiefel.weights import Ledger

Ranks = Mapping[str, int]


def run(spec: FactorizeLowRankSpec, run: Run) -> Outcome:
    """Factorise the checkpoint in ``run.input``; see ``convert_checkpoint`` for the errors."""
    with opened_moments(spec, run) as moments:
        return convert_checkpoint(spec, run, lambda shop: _converter(spec, shop, moments))


def _converter(spec: FactorizeLowRankSpec, shop: Workshop, moments: Moments | None) -> Convert:
    """By the weights, or by the data where there is a calibration."""
    if moments is None:
        return _factoring(spec, shop, ByWeights(spec))
    biases = corrected_biases(spec, shop, moments)
    by_data = ByData(spec, moments, frozenset(biases.values()), ByWeights(spec))
    factorize = _factoring(spec, shop, by_data)
    return BiasCorrection(spec, shop, moments, biases, factorize)


def _factoring(spec: FactorizeLowRankSpec, shop: Workshop, decomposer: Decomposer) -> Convert:
    ranks = _spread_budget(spec, shop, decomposer)
    return lambda task: factorize_tensor(spec, task, decomposer, ranks)


def factorize_tensor(
    spec: FactorizeLowRankSpec, task: Task, decomposer: Decomposer, ranks: Ranks
) -> Converted | Skip:
    """Factorise one tensor, or say why it stays as it is."""
    item = task.item
    x = task.x.reshape(item.rows, item.columns)
    if not bool(x.any()):
        return Skip("zero_matrix", "is zero: no rank describes it better than another")
    rank = ranks.get(item.tensor.name) or spec.known_rank(item.rows, item.columns)
    if rank != UNKNOWN:
        rank = spec.final_rank(rank, item.rows, item.columns)
    parts = decomposer.decompose(task, x, rank)
    if rank == UNKNOWN:
        rank = spec.final_rank(_rank(spec, parts.sigma), item.rows, item.columns)
    skip = spec.verdict(rank, item.rows, item.columns)
    if skip is not None:
        return skip
    return _converted(spec, task, x, rank, parts)


def _rank(spec: FactorizeLowRankSpec, sigma: Tensor) -> int:
    rule = spec.rule
    if isinstance(rule, EnergyRule):
        return rank_for_energy(sigma, rule.value)
    if isinstance(rule, ToleranceRule):
        return rank_for_tolerance(sigma, rule.value)
    assert isinstance(rule, RatioRule)
    return rank_for_ratio(sigma, rule.value)


def _converted(
    spec: FactorizeLowRankSpec, task: Task, x: Tensor, rank: int, parts: Decomposition
) -> Converted:
    item, result = task.item, parts.cut(rank)
    claims: dict[str, float | int] = {
        "rank": result.rank,
        "retained_energy": result.retained_energy,
        "relative_error": result.relative_error,
    }
    data = [result.factor_out, result.factor_in]
    if spec.output == "merged":
        data = [merge(result.factor_out, result.factor_in)]
        claims["relative_error"] = relative_distance(x, data[0])
    claims |= parts.more(data)
    if result.optimal_error is not None:
        claims["optimal_error"] = result.optimal_error
    outputs = spec.outputs(item.tensor, result.rank)
    tensors = [
        NewTensor(output.name, output.dtype, part.reshape(output.shape), output.role, claims)
        for output, part in zip(outputs, data, strict=True)
    ]
    after = {**claims, "parameters": sum(part.numel() for part in data)}
    return Converted(tensors, {"parameters": x.numel()}, after, parts.sigma)


def _spread_budget(spec: FactorizeLowRankSpec, shop: Workshop, decomposer: Decomposer) -> Ranks:
    """Ranks under a global budget: a first pass over all matrices finds their spectra."""
    rule = spec.rule
    if not isinstance(rule, BudgetRule | ShareRule):
        return {}
    shapes = {name: (item.rows, item.columns) for name, item in _weights(shop).items()}
    spectra = _spectra(shop, decomposer)
    if isinstance(rule, BudgetRule):
        budget = rule.value
    else:
        budget = int(rule.value * sum(rows * columns for rows, columns in shapes.values()))
    return ranks_for_budget(
        spectra, shapes, budget, least=spec.min_rank, most=spec.max_rank, step=spec.multiple_of
    )


def _weights(shop: Workshop) -> dict[str, Planned]:
    """What is selected, without the biases that follow their weights."""
    chosen = shop.plan.selected.items()
    return {name: item for name, item in chosen if len(item.tensor.shape) > 1}


def _spectra(shop: Workshop, decomposer: Decomposer) -> dict[str, list[float]]:
    """Singular values of every selected matrix; found ones are kept for a resumed run."""
    with Ledger(shop.run.state / "spectra.jsonl", shop.identity) as found:
        weights = _weights(shop)
        for name, item in weights.items():
            if name in found.done:
                continue
            x = read_finite(shop.readers[item.file], item.tensor)
            sigma = decomposer.spectrum(name, x.reshape(item.rows, item.columns))
            found.add({"source": name, "file": item.file, "tensors": [], "sigma": sigma.tolist()})
            shop.run.progress(len(found.done), len(weights), unit="spectra")
            shop.run.checkpoint(len(shop.ledger.done))
        return {entry["source"]: entry["sigma"] for entry in found.entries()}


METHOD = Method("factorize.low_rank", FactorizeLowRankSpec, run)
