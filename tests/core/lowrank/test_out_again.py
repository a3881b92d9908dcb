"""What export and merge leave as it was, and what they and the conversion refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import FactoredLinear, LowRankLinear, export, merge, to_low_rank


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(24, 20), nn.BatchNorm1d(20), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 4)
    )


@pytest.mark.parametrize("batch", [torch.randn(6, 24), (torch.randn(6, 24),)], ids=["one", "args"])
def test_measuring_leaves_every_mode_as_it_was(batch):
    net = network()
    to_low_rank(net, 4)
    net.train()
    net[1].eval()
    report = export(net, form="auto", example=batch)
    assert all(entry.factored_ms is not None for entry in report)
    assert net.training
    assert not net[1].training


def test_an_example_may_be_a_mapping():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, *, pixels):
            return self.net(pixels)

    named = Named()
    to_low_rank(named, 4)
    report = export(named, example={"pixels": torch.randn(6, 24)})
    assert all(entry.merged_ms is not None for entry in report)


@pytest.mark.parametrize("form", ["factored", "merged"])
def test_what_was_frozen_stays_frozen(form):
    net = network()
    to_low_rank(net, 4)
    net[0].S.requires_grad_(False)
    net[2].bias.requires_grad_(False)
    export(net, form=form)
    assert not any(p.requires_grad for n, p in net[0].named_parameters() if n != "bias")
    assert net[0].bias.requires_grad
    assert all(p.requires_grad for n, p in net[2].named_parameters() if n != "bias")
    assert not net[2].bias.requires_grad
    merge(net)
    assert not net[0].weight.requires_grad
    assert net[2].weight.requires_grad


@pytest.mark.parametrize("rank", [8.0, "8", True, {"0": 8.5}, {"0": 0}])
def test_a_rank_that_is_no_whole_number_is_refused_by_name(rank):
    net = network()
    with pytest.raises(InvalidInputError, match="'0'") as caught:
        to_low_rank(net, rank)
    assert caught.value.code == "rank_out_of_range"
    assert isinstance(net[0], nn.Linear)


def test_numbers_of_numpy_are_ranks():
    net = network()
    assert to_low_rank(net, np.int64(4)).ranks["0"] == 4


def test_forms_and_evaluations_have_names():
    net = network()
    with pytest.raises(InvalidInputError, match="Merged"):
        to_low_rank(net, 4, evaluation="Merged")
    to_low_rank(net, 4)
    with pytest.raises(InvalidInputError, match="fused"):
        export(net, form="fused")


def test_an_encoder_in_eval_mode_stays_in_factors(monkeypatch):
    encoder = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True).eval()
    plain = nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False).eval()
    to_low_rank(plain, 3, include="*linear*", keep_last=False)
    x = torch.randn(2, 5, 16)
    expected = plain(x).detach()
    looked = []
    for kind in (LowRankLinear, FactoredLinear):
        product = kind.weight
        monkeypatch.setattr(
            kind, "weight", property(lambda self, p=product: looked.append(self) or p.fget(self))
        )
    with torch.no_grad():
        torch.testing.assert_close(plain(x), expected)
        assert not looked
        export(plain, form="factored")
        looked.clear()
        torch.testing.assert_close(plain(x), expected, atol=1e-5, rtol=1e-5)
    assert not looked
