"""``factorize.low_rank``: the best product of two thin matrices, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from stiefel.linalg.truncated_svd import singular_values, truncated_svd
from stiefel.methods.conversion import (
    Convert,
    Converted,
    NewTensor,
    Task,
    Workshop,
    convert_checkpoint,
    read_finite,
)
from stiefel.methods.protocol import Method, Outcome, Run
from stiefel.projection.low_rank import LowRank, low_rank, merge, relative_distance, whole_svd
from stiefel.projection.rank_rules import (
    rank_for_energy,
    rank_for_ratio,
    rank_for_tolerance,
    ranks_for_budget,
)
from stiefel.specs.factorize_low_rank import UNKNOWN, FactorizeLowRankSpec
from stiefel.specs.rank_rules import BudgetRule, EnergyRule, RatioRule, ShareRule, ToleranceRule
from stiefel.specs.treatment import Skip
from stiefel.weights import Ledger

Ranks = Mapping[str, int]


@dataclass(frozen=True)
class Decomposition:
    """One matrix taken apart: what the rank rules look at, and how to cut it."""

    sigma: Tensor  # singular values, descending; all of them unless the rank was known before
    cut: Callable[[int], LowRank]


class Decomposer(Protocol):
    """What "best approximation" means: by the weights alone, or by the data they will see."""

    def spectrum(self, name: str, x: Tensor) -> Tensor:
        """All singular values that the rank rules shall see for tensor ``name``."""

    def decompose(self, task: Task, x: Tensor, rank: int) -> Decomposition:
        """Take ``x`` apart; ``rank`` is ``UNKNOWN`` or the rank that will be cut."""


@dataclass(frozen=True)
class ByWeights:
    """Best in the Frobenius norm of the weights: the truncated SVD."""

    spec: FactorizeLowRankSpec

    def spectrum(self, name: str, x: Tensor) -> Tensor:
        """The singular values of ``x``."""
        return singular_values(x)

    def decompose(self, task: Task, x: Tensor, rank: int) -> Decomposition:
        """The SVD of ``x`` by the spec's engine."""
        if self.spec.engine == "randomised":
            generator = torch.Generator().manual_seed(task.seed)
            svd = truncated_svd(x, rank, generator=generator)
        else:
            svd = whole_svd(x, self.spec.engine)
        return Decomposition(svd.sigma, lambda r: low_rank(x, svd, r, factors=self.spec.factors))


def run(spec: FactorizeLowRankSpec, run: Run) -> Outcome:
    """Factorise the checkpoint in ``run.input``; see ``convert_checkpoint`` for the errors."""

    def prepare(shop: Workshop) -> Convert:
        decomposer = ByWeights(spec)
        ranks = _spread_budget(spec, shop, decomposer)
        return lambda task: factorize_tensor(spec, task, decomposer, ranks)

    return convert_checkpoint(spec, run, prepare)


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
    return _converted(spec, task, x, parts.cut(rank), parts.sigma)


def _rank(spec: FactorizeLowRankSpec, sigma: Tensor) -> int:
    rule = spec.rule
    if isinstance(rule, EnergyRule):
        return rank_for_energy(sigma, rule.value)
    if isinstance(rule, ToleranceRule):
        return rank_for_tolerance(sigma, rule.value)
    assert isinstance(rule, RatioRule)
    return rank_for_ratio(sigma, rule.value)


def _converted(
    spec: FactorizeLowRankSpec, task: Task, x: Tensor, result: LowRank, sigma: Tensor
) -> Converted:
    item = task.item
    claims: dict[str, float | int] = {
        "rank": result.rank,
        "retained_energy": result.retained_energy,
        "relative_error": result.relative_error,
    }
    if result.optimal_error is not None:
        claims["optimal_error"] = result.optimal_error
    data = [result.factor_out, result.factor_in]
    if spec.output == "merged":
        data = [merge(result.factor_out, result.factor_in)]
        claims["relative_error"] = relative_distance(x, data[0])
    outputs = spec.outputs(item.tensor, result.rank)
    tensors = [
        NewTensor(output.name, output.dtype, part.reshape(output.shape), output.role, claims)
        for output, part in zip(outputs, data, strict=True)
    ]
    after = {**claims, "parameters": sum(part.numel() for part in data)}
    return Converted(tensors, {"parameters": x.numel()}, after, sigma)


def _spread_budget(spec: FactorizeLowRankSpec, shop: Workshop, decomposer: Decomposer) -> Ranks:
    """Ranks under a global budget: a first pass over all matrices finds their spectra."""
    rule = spec.rule
    if not isinstance(rule, BudgetRule | ShareRule):
        return {}
    shapes = {name: (item.rows, item.columns) for name, item in shop.plan.selected.items()}
    spectra = _spectra(shop, decomposer)
    if isinstance(rule, BudgetRule):
        budget = rule.value
    else:
        budget = int(rule.value * sum(rows * columns for rows, columns in shapes.values()))
    return ranks_for_budget(spectra, shapes, budget)


def _spectra(shop: Workshop, decomposer: Decomposer) -> dict[str, list[float]]:
    """Singular values of every selected matrix; found ones are kept for a resumed run."""
    with Ledger(shop.run.state / "spectra.jsonl", shop.identity) as found:
        total = len(shop.plan.selected)
        for name, item in shop.plan.selected.items():
            if name in found.done:
                continue
            x = read_finite(shop.readers[item.file], item.tensor)
            sigma = decomposer.spectrum(name, x.reshape(item.rows, item.columns))
            found.add({"source": name, "file": item.file, "tensors": [], "sigma": sigma.tolist()})
            shop.run.progress(len(found.done), total, unit="spectra")
            shop.run.checkpoint(len(shop.ledger.done))
        return {entry["source"]: entry["sigma"] for entry in found.entries()}


METHOD = Method("factorize.low_rank", FactorizeLowRankSpec, run)
