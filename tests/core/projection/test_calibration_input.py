"""Ranks and budgets that do not fit the moments are refused before anything is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.projection.calibration import collect_moments, factorize_model
from stiefel.projection.sequential import factorize_sequentially


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


def test_a_layer_that_keeps_its_weight_counts_as_its_weight():
    model = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 1))
    moments = collect_moments(model, ["0", "1"], [torch.randn(64, 16)])
    made = factorize_model(model, moments, budget=28 + 12)
    assert made.kept == ("1",)
    with pytest.raises(InvalidInputError, match="less than the 40 "):
        factorize_model(model, moments, budget=39)


@pytest.mark.parametrize("rank", [0, 9, 2.0, True])
def test_a_rank_out_of_range_names_its_layer(model, moments, rank):
    with pytest.raises(InvalidInputError, match=r"no whole number in 1\.\.8 for '2'"):
        factorize_model(model, moments, ranks={"0": 3, "2": rank})


def test_inputs_that_are_all_zero_name_their_layer():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    moments = collect_moments(model, ["0", "1"], [torch.randn(64, 6)])
    with pytest.raises(InvalidInputError, match="inputs of '1' are all zero") as caught:
        factorize_model(model, moments, budget=30)
    assert caught.value.tensor == "1"


def test_numbers_of_numpy_are_ranks(model, moments):
    made = factorize_model(model, moments, ranks={"0": np.int64(3), "2": np.int64(2)})
    assert made.layers["2"].rank == 2


@pytest.mark.parametrize("options", [{"groups": 2}, {"padding": "same"}])
def test_a_convolution_that_cannot_be_calibrated_is_named_at_once(options):
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, **options))
    with pytest.raises(InvalidInputError, match="not '1'"):
        collect_moments(model, ["0", "1"], [])


def test_layers_may_be_called_by_keyword():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(16, 12), nn.Linear(12, 8)

        def forward(self, x):
            return self.second(input=torch.relu(self.first(input=x)))

    net, x = Net(), torch.randn(64, 16)
    moments = collect_moments(net, ["first", "second"], [x])
    assert torch.allclose(moments["first"].matrix, x.double().T @ x.double())
    assert moments["second"].count == 64
    made = factorize_sequentially(net, moments, [x], ranks={"first": 3, "second": 2})
    assert made.layers["second"].rank == 2
