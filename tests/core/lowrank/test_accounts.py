"""What a conversion says of the modules that it leaves as they are."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils.prune import l1_unstructured

from stiefel.lowrank import to_low_rank


def test_what_cannot_be_swapped_is_listed():
    model = nn.Sequential(nn.Conv1d(8, 8, 3), nn.Linear(16, 16), nn.Linear(16, 16))
    l1_unstructured(model[1], "weight", 0.5)
    model.add_module("3", nn.Linear(16, 16))
    reasons = dict(to_low_rank(model, 4).skipped)
    assert "Conv1d" in reasons["0"]
    assert reasons["1"] == "the weight is parametrized"


def test_whatever_holds_matrices_is_accounted_for():
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.zeros(4, 8, 8))
            self.norm = nn.LayerNorm(8)

    parts = {
        "words": nn.Embedding(10, 8),
        "memory": nn.LSTM(8, 8),
        "pair": nn.Bilinear(8, 8, 8),
        "experts": Experts(),
        "turned": parametrizations.orthogonal(nn.Linear(8, 8)),
        "good": nn.Linear(16, 16),
        "head": nn.Linear(16, 16),
    }
    model = nn.ModuleDict(parts)
    model.register_parameter("place", nn.Parameter(torch.zeros(1, 5, 8)))
    assert dict(to_low_rank(model, 4).skipped) == {
        "words": "no low-rank counterpart of Embedding",
        "memory": "no low-rank counterpart of LSTM",
        "pair": "no low-rank counterpart of Bilinear",
        "experts": "no low-rank counterpart of Experts",
        "turned": "the weight is parametrized",
        "head": "the last layer is kept",
    }
    again = to_low_rank(model, 4, keep_last=False)
    assert dict(again.skipped)["good"] == "low-rank already"
    assert set(again.ranks) == {"head"}
