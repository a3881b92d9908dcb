"""What "the best approximation of a matrix" means: by its weights alone, or by its data."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from stiefel.linalg.truncated_svd import Svd, singular_values, truncated_svd, widened
from stiefel.methods.conversion import Task
from stiefel.methods.moments import Moments
from stiefel.projection.low_rank import LowRank, low_rank, product_error, whole_svd
from stiefel.projection.whitening import (
    Root,
    SecondMoment,
    moment_root,
    output_change,
    unwhitened_factors,
    whitened_values,
)
from stiefel.specs.factorize_low_rank import FactorizeLowRankSpec


@dataclass(frozen=True)
class Decomposition:
    """One matrix taken apart: what the rank rules look at, and how to cut it."""

    sigma: Tensor  # singular values, descending; all of them unless the rank was known before
    cut: Callable[[int], LowRank]
    # Further claims, of the tensors as stored: two factors, or their product alone.
    more: Callable[[Sequence[Tensor]], Mapping[str, float]] = field(default=lambda _: {})


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


@dataclass(frozen=True)
class ByData:
    """Best for the layer's output on calibration data, where the file has data on the layer.

    ``centred``: weights whose bias takes up the change of the mean; what the rules judge and the
    factors minimise is then the change of the output about its mean.
    """

    spec: FactorizeLowRankSpec
    moments: Moments
    centred: Container[str]
    otherwise: Decomposer

    def spectrum(self, name: str, x: Tensor) -> Tensor:
        """The singular values of W R, whose tail is the change of the output."""
        moment = self.moments.of(name, x)
        if moment is None:
            return self.otherwise.spectrum(name, x)
        x = x.mT if moment.stored_transposed else x
        return whitened_values(x, self._root(name, moment))

    def decompose(self, task: Task, x: Tensor, rank: int) -> Decomposition:
        """The SVD of W R; cutting it undoes R."""
        name = task.item.tensor.name
        moment = self.moments.of(name, x)
        if moment is None:
            return self.otherwise.decompose(task, x, rank)
        root = self._root(name, moment)
        turned = moment.stored_transposed
        weight = x.mT if turned else x
        svd = Svd(*torch.linalg.svd(widened(weight) @ root.lower, full_matrices=False))

        def cut(r: int) -> LowRank:
            out, into = unwhitened_factors(svd, root, r, self.spec.factors)
            if turned:
                out, into = into.mT.contiguous(), out.mT.contiguous()
            return _measured(x, out.to(x.dtype), into.to(x.dtype))

        def more(stored: Sequence[Tensor]) -> Mapping[str, float]:
            # The tail of the SVD is no figure of these: rounding often costs more than it.
            parts = [part.mT for part in reversed(stored)] if turned else stored
            change = output_change(weight, self._inner(name, moment), parts)
            whole = output_change(weight, moment.matrix)
            return {"output_error": change / (whole or 1.0), "moment_shift": root.shift}

        return Decomposition(svd.sigma, cut, more)

    def _root(self, name: str, moment: SecondMoment) -> Root:
        return moment_root(self._inner(name, moment), name)

    def _inner(self, name: str, moment: SecondMoment) -> Tensor:
        return moment.centred() if name in self.centred else moment.matrix


def _measured(x: Tensor, factor_out: Tensor, factor_in: Tensor) -> LowRank:
    """The factors with what they keep of the weights; no plain bound holds for them."""
    error = product_error(x, factor_out, factor_in)
    relative = error / (float(torch.linalg.vector_norm(widened(x))) or 1.0)
    return LowRank(
        factor_out,
        factor_in,
        factor_in.shape[0],
        relative_error=relative,
        optimal_error=None,
        retained_energy=max(0.0, 1 - relative**2),
    )
