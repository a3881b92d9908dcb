"""Attention in factors answers, and refuses, as ``nn.MultiheadAttention`` does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import LowRankLinear, LowRankMultiheadAttention


@pytest.fixture
def pair():
    torch.manual_seed(0)
    dense = nn.MultiheadAttention(16, 4, batch_first=True).double()
    return dense, LowRankMultiheadAttention.from_dense(dense, 16)


WRONG = {
    "causal without a mask": {"is_causal": True},
    "causal with padding alone": {
        "is_causal": True,
        "need_weights": False,
        "key_padding_mask": torch.zeros(2, 5, dtype=torch.bool),
    },
    "integer padding": {"key_padding_mask": torch.zeros(2, 5, dtype=torch.long)},
    "integer mask": {"attn_mask": torch.zeros(5, 5, dtype=torch.uint8)},
    "a mask to be broadcast": {"attn_mask": torch.zeros(1, 5)},
    "a mask of too many heads": {"attn_mask": torch.zeros(9, 5, 5)},
    "padding of another length": {"key_padding_mask": torch.zeros(2, 4, dtype=torch.bool)},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_torch_refuses_is_refused(pair, name):
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    dense, low = pair
    with pytest.raises((RuntimeError, AssertionError)):
        dense(x, x, x, **WRONG[name])
    with pytest.raises(InvalidInputError) as caught:
        low(x, x, x, **WRONG[name])
    assert caught.value.fix


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_a_causal_mask_gives_what_torch_gives(pair, need_weights, padded):
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    mask = nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64)
    padding = torch.zeros(2, 5, dtype=torch.float64)
    padding[1, 4] = -torch.inf
    options = {
        "attn_mask": mask,
        "is_causal": True,
        "need_weights": need_weights,
        "key_padding_mask": padding if padded else None,
    }
    dense, low = pair
    torch.testing.assert_close(low(x, x, x, **options)[0], dense(x, x, x, **options)[0])


@pytest.mark.parametrize("batch_first", [True, False])
def test_attention_to_itself_projects_once(batch_first, monkeypatch):
    low = LowRankMultiheadAttention.from_dense(
        nn.MultiheadAttention(16, 4, batch_first=batch_first), 4
    )
    calls = []
    forward = LowRankLinear.forward
    monkeypatch.setattr(
        LowRankLinear, "forward", lambda self, x: calls.append(self) or forward(self, x)
    )
    x = torch.randn(3, 5, 16)
    low(x, x, x)
    assert calls == [low.in_proj, low.out_proj]


def test_an_empty_batch_passes(pair):
    x = torch.zeros(0, 5, 16, dtype=torch.float64)
    output, weights = pair[1](x, x, x)
    assert output.shape == (0, 5, 16)
    assert weights.shape == (0, 5, 5)


def test_what_was_frozen_stays_frozen_when_dense_again(pair):
    low = pair[1]
    low.in_proj.S.requires_grad_(False)
    low.in_proj.bias.requires_grad_(False)
    dense = low.to_dense()
    assert not dense.in_proj_weight.requires_grad
    assert not dense.in_proj_bias.requires_grad
    assert dense.out_proj.weight.requires_grad


@pytest.mark.parametrize("need_weights", [True, False])
def test_double_precision_stays_so_under_autocast(pair, need_weights):
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = (layer(x, x, x, need_weights=need_weights)[0] for layer in pair)
    torch.testing.assert_close(got, wanted)
