"""Ranks and budgets that do not fit the moments are refused before anything is computed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.projection.calibration import collect_moments, factorize_model


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 8))


@pytest.fixture
def moments(model):
    return collect_moments(model, ["0", "2"], [torch.randn(64, 16)])


@pytest.mark.parametrize(("ranks", "name"), [({"0": 3}, "'2'"), ({"0": 3, "2": 3, "4": 3}, "'4'")])
def test_ranks_are_for_the_layers_that_were_seen(model, moments, ranks, name):
    with pytest.raises(InvalidInputError, match=name):
        factorize_model(model, moments, ranks=ranks)


@pytest.mark.parametrize("budget", [-5, 1, 47])
def test_a_budget_under_rank_one_everywhere_says_what_it_takes(model, moments, budget):
    with pytest.raises(InvalidInputError, match="48"):
        factorize_model(model, moments, budget=budget)


def test_the_least_budget_gives_rank_one(model, moments):
    made = factorize_model(model, moments, budget=48)
    assert made.tensors["0.factor_in"].shape == (1, 16)
    assert made.tensors["2.factor_in"].shape == (1, 12)
