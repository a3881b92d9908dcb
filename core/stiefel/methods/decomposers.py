"""What "the best approximation of a matrix" means: by its weights alone, or by its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from stiefel.errors import InvalidInputError
from stiefel.linalg.truncated_svd import Svd, singular_values, truncated_svd, widened
from stiefel.methods.conversion import Task, read_finite
from stiefel.projection.low_rank import LowRank, low_rank, product_error, whole_svd
from stiefel.projection.whitening import (
    Root,
    moment_root,
    unwhitened_factors,
    whitened_values,
)
from stiefel.specs.factorize_low_rank import FactorizeLowRankSpec, factor_stem
from stiefel.weights import TensorReader


@dataclass(frozen=True)
class Decomposition:
    """One matrix taken apart: what the rank rules look at, and how to cut it."""

    sigma: Tensor  # singular values, descending; all of them unless the rank was known before
    cut: Callable[[int], LowRank]
    more: Callable[[int], Mapping[str, float]] = field(default=lambda _: {})  # further claims


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
    """Best for the layer's output on calibration data, where the file has data on the layer."""

    spec: FactorizeLowRankSpec
    moments: TensorReader
    otherwise: Decomposer

    def spectrum(self, name: str, x: Tensor) -> Tensor:
        """The singular values of W R, whose tail is the change of the output."""
        root = self._root(name, x)
        return self.otherwise.spectrum(name, x) if root is None else whitened_values(x, root)

    def decompose(self, task: Task, x: Tensor, rank: int) -> Decomposition:
        """The SVD of W R; cutting it undoes R."""
        root = self._root(task.item.tensor.name, x)
        if root is None:
            return self.otherwise.decompose(task, x, rank)
        svd = Svd(*torch.linalg.svd(widened(x) @ root.lower, full_matrices=False))
        whole = float(torch.linalg.vector_norm(svd.sigma)) or 1.0

        def cut(r: int) -> LowRank:
            out, into = unwhitened_factors(svd, root, r, self.spec.factors)
            return _measured(x, out.to(x.dtype), into.to(x.dtype))

        def more(r: int) -> Mapping[str, float]:
            tail = float(torch.linalg.vector_norm(svd.sigma[r:]))
            return {"output_error": tail / whole, "moment_shift": root.shift}

        return Decomposition(svd.sigma, cut, more)

    def _root(self, name: str, x: Tensor) -> Root | None:
        info = self.moments.table.tensors.get(f"{factor_stem(name)}.second_moment")
        if info is None:
            return None
        moment = read_finite(self.moments, info)
        if x.is_complex() or tuple(moment.shape) != (x.shape[1], x.shape[1]):
            raise InvalidInputError(
                f"{info.name!r} is {tuple(moment.shape)}, but {name!r} takes real inputs of "
                f"width {x.shape[1]}",
                code="calibration_width",
                tensor=name,
                fix="Make the moment from the inputs of this layer, one row per input.",
            )
        return moment_root(moment.double())


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
