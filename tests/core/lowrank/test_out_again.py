"""What export and merge leave as it was, and what they and the conversion refuse."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import (
    FactoredLinear,
    GaLoreAdamW,
    LowRankLinear,
    export,
    merge,
    split_pissa,
    to_low_rank,
)


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


def test_a_dense_warm_up_takes_the_names_of_a_mapping():
    made = to_low_rank(network(), {"0": 3}, dense=True)
    assert made.ranks == {"0": 20}
    assert ("2", "no rank is given for it") in made.skipped


def test_an_example_may_reach_a_layer_by_keyword():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = LowRankLinear(24, 20, 3)

        def forward(self, pixels):
            return self.layer(input=pixels)

    report = export(Named(), example=torch.randn(6, 24))
    assert report[0].merged_ms is not None


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


class Ends(nn.Module):
    """Two layers whose names end alike."""

    def __init__(self):
        super().__init__()
        self.fc, self.sub = nn.Linear(8, 8), nn.ModuleDict({"fc": nn.Linear(8, 8)})

    def forward(self, x):
        return self.sub["fc"](torch.tanh(self.fc(x)))


@pytest.mark.parametrize("rank", [9, 2.0])
def test_a_layer_that_cannot_be_split_is_named(rank):
    with pytest.raises(InvalidInputError, match=r"'sub\.fc'") as caught:
        split_pissa(Ends(), ["sub.fc"], rank)
    assert caught.value.tensor == "sub.fc"
    net = Ends()
    with torch.no_grad():
        net.fc.weight[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="'fc' holds NaN"):
        split_pissa(net, ["fc"], 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"rank": 2.5},
        {"period": 0},
        {"energy": 0.0},
        {"eps": -1e-8},
        {"weight_decay": -0.1},
        {"lr": -1.0},
        {"betas": (0.9, 1.0)},
    ],
)
def test_a_group_of_parameters_cannot_have_options_that_do_not_work(wrong):
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    optimizer = GaLoreAdamW(first.parameters(), rank=4)
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        optimizer.add_param_group({"params": second.parameters(), **wrong})
    assert len(optimizer.param_groups) == 1
    with pytest.raises(InvalidInputError):
        GaLoreAdamW([{"params": first.parameters(), **wrong}])


def test_a_renewal_that_falls_on_zeros_waits_and_keeps_the_moments(generator):
    weight = nn.Parameter(torch.randn(12, 20, generator=generator))
    optimizer = GaLoreAdamW([weight], rank=3, period=2)
    gradients = [torch.randn(12, 20, generator=generator) for _ in range(3)]
    bases = []
    for gradient in (gradients[0], gradients[1], torch.zeros(12, 20), gradients[2]):
        weight.grad = gradient
        optimizer.step()
        bases.append(optimizer.state[weight]["basis"].clone())
    assert torch.equal(bases[2], bases[0])
    held, whole = (bases[3].T @ gradients[2]).norm(), torch.linalg.svdvals(gradients[2])[:3].norm()
    torch.testing.assert_close(held, whole)


def test_a_sparse_gradient_is_refused_in_the_words_of_torch():
    net = nn.Embedding(30, 20, sparse=True)
    net(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InvalidInputError, match="does not support sparse gradients"):
        GaLoreAdamW(net.parameters(), rank=4).step()
