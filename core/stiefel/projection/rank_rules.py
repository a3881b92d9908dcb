"""Ranks from singular values. All functions take the whole spectrum, descending, in float64."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stiefel.break_even import break_even_rank


def rank_for_energy(sigma: Tensor, energy: float) -> int:
    """The least r with ``sum(sigma[:r]^2) >= energy * sum(sigma^2)``; 0 for a zero spectrum."""
    return _rank_for_tail(sigma, 1 - energy)


def rank_for_tolerance(sigma: Tensor, tolerance: float) -> int:
    """The least r with ``norm(sigma[r:]) <= tolerance * norm(sigma)``; 0 for a zero spectrum."""
    return _rank_for_tail(sigma, tolerance**2)


def _rank_for_tail(sigma: Tensor, share: float) -> int:
    """The least r whose tail ``sum(sigma[r:]^2)`` is at most ``share`` of the whole sum."""
    if not sigma.numel() or float(sigma[0]) == 0:
        return 0
    # Scaled against underflow; summed from the small end, where the digits that decide are.
    tails = (sigma / sigma[0]).square().flip(0).cumsum(0).flip(0)
    whole = float(tails[0])
    allowed = share * whole
    if allowed > 0:  # a tail that equals the bound but for rounding is within it
        allowed += 4 * torch.finfo(sigma.dtype).eps * whole + 1e-12 * allowed
    return int((tails > allowed).sum())


def rank_for_ratio(sigma: Tensor, ratio: float) -> int:
    """How many singular values are at least ``ratio`` of the largest; 0 for a zero spectrum."""
    if not sigma.numel() or float(sigma[0]) == 0:
        return 0
    return int((sigma >= ratio * sigma[0]).sum())


def ranks_for_budget(
    spectra: Mapping[str, Sequence[float]],
    shapes: Mapping[str, tuple[int, int]],
    budget: int,
    *,
    least: int = 1,
    most: int | None = None,
    step: int = 1,
) -> dict[str, int]:
    """Spread ``budget`` parameters over matrices, each where it retains the most energy.

    Greedy by energy per parameter, ``sigma_i^2 / ||W||^2 / (n + m)``. Every matrix gets the least
    rank first. After the last rank at which factors are smaller than the matrix comes the full
    one, which costs n * m: the matrix itself is kept.

    Since gains descend within each matrix, no choice of equal cost among ranks whose factors are
    smaller retains more, up to the last item. A choice that keeps a matrix whole may: the step to
    the full rank gains many values at once, but is looked at only when it is next. For flat
    spectra that shows, as of two Gaussian 16 x 16 matrices under 420: they get ranks 6 and 7
    where 5 and 16 would retain about 5 % more.

    Args:
        spectra: singular values by name, descending.
        shapes: (n, m) by name.
        budget: total parameters of all factors; never exceeded unless the least rank everywhere
            is already more.
        least: rank that every matrix gets, as far as it has so many.
        most: rank that no matrix exceeds.
        step: ranks are multiples of it, but for the full rank.

    Cost: O(k log L) for k ranks given out over L matrices.
    """
    energy = {
        name: sum(value * value for value in values) or 1.0 for name, values in spectra.items()
    }
    first = -(-max(1, least) // step) * step
    ranks = {name: min(first, *shapes[name]) for name in spectra}
    left = budget - sum(_price(ranks[name], *shapes[name]) for name in spectra)

    def offer(name: str) -> tuple[float, str, int, int]:
        """Minus the energy per parameter, so that the heap's first is best; what and for what."""
        now, rank = ranks[name], _next_rank(ranks[name], step, *shapes[name])
        if most is not None and rank > most:
            rank = now
        cost = _price(rank, *shapes[name]) - _price(now, *shapes[name])
        gain = sum(value * value for value in spectra[name][now:rank]) / energy[name]
        return -gain / max(1, cost), name, rank, cost

    heap = [offer(name) for name in sorted(spectra)]
    heapq.heapify(heap)
    while heap:
        gain, name, rank, cost = heapq.heappop(heap)
        if gain == 0 or cost > left:
            continue
        ranks[name] = rank
        left -= cost
        heapq.heappush(heap, offer(name))
    return ranks


def _price(rank: int, rows: int, columns: int) -> int:
    return min(rank * (rows + columns), rows * columns)


def _next_rank(rank: int, step: int, rows: int, columns: int) -> int:
    higher = rank + step
    return higher if higher <= break_even_rank(rows, columns) else min(rows, columns)
