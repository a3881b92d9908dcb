from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.unitary import (
    FourierConv2d,
    FrameConv2d,
    OrthogonalLinear,
    OrthogonalRNN,
    ProjUNN,
    UnitaryLinear,
    cayley_,
    haar_,
    handover,
    henaff_,
    manifold_parameters,
    modrelu,
    to_unitary,
)


@pytest.mark.parametrize("sizes", [(6, 6), (4, 7), (7, 4)])
@pytest.mark.parametrize("factored", [True, False])
@pytest.mark.parametrize("kind", [OrthogonalLinear, UnitaryLinear])
def test_linear_gradients_match_autograd(
    draw: Any, sizes: tuple[int, int], factored: bool, kind: type[OrthogonalLinear]
) -> None:
    dtype = torch.complex128 if kind is UnitaryLinear else torch.float64
    layer = kind(*sizes, dtype=dtype, generator=draw.generator)
    if factored:
        ProjUNN([layer.frame])
    x = draw.normal(1, sizes[0], dtype=dtype).requires_grad_()
    twin_x = x.detach().clone().requires_grad_()
    weight = layer.weight.detach().clone().requires_grad_()
    target = draw.normal(1, sizes[1], dtype=dtype)
    (layer(x) * target).sum().abs().square().backward()
    (nn.functional.linear(twin_x, weight) * target).sum().abs().square().backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert torch.allclose(x.grad, twin_x.grad)
    factors = handover.pending(layer.frame)
    if factored:
        assert factors is not None
        assert layer.frame.grad is None
        G = factors.a @ factors.b.mH
        if factors.products is not None:
            frame = layer.frame.detach()
            assert torch.allclose(factors.products.Wb, frame @ factors.b)
            assert torch.allclose(factors.products.Wa, frame.mH @ factors.a)
    else:
        assert layer.frame.grad is not None
        G = layer.frame.grad
    assert torch.allclose(G.mT if layer.transposed else G, weight.grad)


def test_the_gradient_is_formed_once_the_batch_is_large(draw: Any) -> None:
    layer = OrthogonalLinear(16, 16)
    ProjUNN([layer.frame])
    layer(torch.ones(5, 16)).sum().backward()
    assert layer.frame.grad is not None


def test_linear_under_autocast_keeps_its_parameter_in_full_precision(
    draw: Any, defect: Any
) -> None:
    layer = OrthogonalLinear(32, 32, generator=draw.generator)
    optimizer = ProjUNN([layer.frame], lr=0.001)
    with torch.autocast("cpu", torch.bfloat16):
        layer(torch.ones(2, 4, 32)).square().sum().backward()
    optimizer.step()
    assert layer.frame.dtype == torch.float32
    assert defect(layer.frame.detach()) < 1e-5


def test_a_layer_keeps_no_gain_or_loss_of_norm(draw: Any) -> None:
    x = draw.normal(3, 5, dtype=torch.complex64)
    y = UnitaryLinear(5, 9, bias=False)(x)
    assert torch.allclose(x.norm(dim=1), y.norm(dim=1), rtol=1e-5)
    with pytest.raises(InvalidInputError, match="complex"):
        OrthogonalLinear(3, 3, dtype=torch.complex64)


@pytest.mark.parametrize("fill", [haar_, henaff_, cayley_])
@pytest.mark.parametrize("n", [1, 6, 7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
def test_starting_points_are_orthogonal(defect: Any, fill: Any, n: int, dtype: torch.dtype) -> None:
    W = fill(torch.empty(2, n, n, dtype=dtype), generator=torch.Generator().manual_seed(3))
    assert defect(W) < 1e-5
    again = fill(torch.empty(2, n, n, dtype=dtype), generator=torch.Generator().manual_seed(3))
    assert torch.equal(W, again)


def test_cayley_turns_by_the_angle_it_draws() -> None:
    t = torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    W = cayley_(
        torch.empty(1000, 1000, dtype=torch.float64), generator=torch.Generator().manual_seed(0)
    )
    angles = torch.atan2(W.diagonal(-1)[::2], W.diagonal()[::2])
    assert torch.allclose(angles, t * math.pi / 2)
    with pytest.raises(InvalidInputError, match="square"):
        henaff_(torch.empty(3, 2))


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh", "modrelu"])
@pytest.mark.parametrize("bias", [True, False])
def test_rnn_equals_its_recurrence(draw: Any, nonlinearity: Any, bias: bool) -> None:
    rnn = OrthogonalRNN(3, 5, nonlinearity=nonlinearity, bias=bias, generator=draw.generator)
    x = draw.normal(2, 4, 3, dtype=torch.float32)
    states, last = rnn(x)
    h = torch.zeros(2, 5)
    for t in range(4):
        z = x[:, t] @ rnn.input_weight.T + h @ rnn.frame.T
        if nonlinearity == "modrelu":
            h = modrelu(z, rnn.bias)
        else:
            h = getattr(torch, nonlinearity)(z if rnn.bias is None else z + rnn.bias)
        assert torch.allclose(states[:, t], h, atol=1e-6)
    assert torch.equal(last[0], states[:, -1])
    again = OrthogonalRNN(3, 5, nonlinearity=nonlinearity, bias=bias, batch_first=False)
    again.load_state_dict(rnn.state_dict())
    assert torch.allclose(again(x.transpose(0, 1))[0], states.transpose(0, 1), atol=1e-6)
    assert torch.allclose(again(x[0])[0], states[0], atol=1e-6)
    first, middle = rnn(x[:, :2])
    rest, end = rnn(x[:, 2:], middle)
    assert torch.allclose(torch.cat((first, rest), 1), states, atol=1e-6)
    assert torch.allclose(end, last, atol=1e-6)
    states.sum().backward()
    assert rnn.frame.grad is not None


def test_unitary_rnn(draw: Any) -> None:
    rnn = OrthogonalRNN(3, 5, nonlinearity="modrelu", dtype=torch.complex64)
    states, _ = rnn(torch.zeros(2, 4, 3))
    states.abs().sum().backward()
    assert bool(torch.view_as_real(rnn.frame.grad).isfinite().all())
    with pytest.raises(InvalidInputError, match="complex"):
        OrthogonalRNN(3, 5, nonlinearity="tanh", dtype=torch.complex64)


# What the spec asks of a singular value of the real operator, and what rounding leaves of it.
PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-12}


def jacobian(layer: FourierConv2d) -> Tensor:
    """The real operator as a matrix."""
    shape = (layer.in_channels, *layer.size)
    basis = torch.eye(math.prod(shape), dtype=layer.frame_real.dtype).view(-1, *shape)
    return layer(basis).detach().flatten(1).T


@pytest.mark.parametrize("size", [(4, 4), (5, 4), (4, 5), (3, 3), (1, 1), (2, 6)])
@pytest.mark.parametrize("channels", [(3, 3), (2, 3), (3, 2)])
@pytest.mark.parametrize("dtype", PRECISIONS)
def test_fourier_convolution_is_an_isometry_of_real_images(
    draw: Any, size: tuple[int, int], channels: tuple[int, int], dtype: torch.dtype
) -> None:
    layer = FourierConv2d(
        *channels, size, initialisation="haar", dtype=dtype, generator=draw.generator
    )
    values = torch.linalg.svdvals(jacobian(layer))
    assert float((values - 1).abs().max()) < PRECISIONS[dtype]


@pytest.mark.parametrize("dtype", PRECISIONS)
def test_fourier_convolution_stays_orthogonal_over_200_steps(draw: Any, dtype: torch.dtype) -> None:
    """Oracle 14: the authors' layer is left with a singular value of 0.48."""
    layer = FourierConv2d(3, 3, (6, 6), dtype=dtype)
    model = nn.Sequential(layer, nn.ReLU(), FourierConv2d(3, 4, (6, 6), dtype=dtype))
    optimizer = ProjUNN(manifold_parameters(model), lr=1e-2, scaling="rmsprop")
    x = draw.normal(8, 3, 6, 6, dtype=dtype)
    target = draw.normal(8, 4, 6, 6, dtype=dtype)
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    values = torch.linalg.svdvals(jacobian(layer))
    assert float((values - 1).abs().max()) < PRECISIONS[dtype]
    identity = torch.eye(values.numel(), dtype=dtype)
    assert not torch.allclose(jacobian(layer), identity, atol=0.1)


@pytest.mark.parametrize("layer", [OrthogonalLinear, UnitaryLinear, OrthogonalRNN])
def test_a_layer_of_half_precision_is_refused(layer: Any) -> None:
    with pytest.raises(InvalidInputError, match="half precision cannot stay orthogonal"):
        layer(4, 4, dtype=torch.float16)


def test_fourier_convolution_refuses_other_images() -> None:
    with pytest.raises(InvalidInputError, match="float16"):
        FourierConv2d(3, 3, (6, 6), dtype=torch.float16)
    with pytest.raises(InvalidInputError, match="expected 3 channels"):
        FourierConv2d(3, 3, (6, 6))(torch.zeros(1, 3, 5, 6))


@pytest.mark.parametrize(("inside", "outside"), [(2, 4), (2, 30)])
def test_frame_convolution(draw: Any, inside: int, outside: int) -> None:
    layer = FrameConv2d(inside, outside, 3, padding=1, generator=draw.generator)
    flat = layer.weight.detach().flatten(1)
    small = flat @ flat.T if outside < inside * 9 else flat.T @ flat
    assert torch.allclose(small, torch.eye(small.shape[0]), atol=1e-5)
    y = layer(draw.normal(2, inside, 5, 5, dtype=torch.float32))
    if layer.contracts:
        assert torch.allclose(y.norm(dim=1), torch.ones(2, 5, 5))
    y.square().sum().backward()
    assert layer.frame.grad is not None


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.rnn = nn.RNN(6, 5, batch_first=True)
        self.dense = nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)
        self.tied = nn.Linear(5, 8)
        self.tied.weight = self.dense.weight
        self.conv = nn.Conv2d(2, 3, 3)
        self.grouped = nn.Conv2d(2, 2, 3, groups=2)


def test_to_unitary_swaps_by_name_and_says_what_it_left(draw: Any) -> None:
    model = Block()
    old = copy.deepcopy(model)
    report = to_unitary(model, exclude="head")
    assert {s.name: s.kind for s in report.swapped} == {
        "rnn": "OrthogonalRNN",
        "conv": "FrameConv2d",
    }
    reasons = {s.name: s.reason for s in report.skipped}
    assert "counterpart of Embedding" in reasons["embed"]
    assert reasons["head"] == "excluded by name"
    assert "shares" in reasons["dense"]
    assert "groups=2" in reasons["grouped"]
    factor = torch.linalg.svd(old.rnn.weight_hh_l0.detach())
    assert torch.allclose(model.rnn.frame, factor.U @ factor.Vh, atol=1e-5)
    for swapped in report.swapped:
        assert 0 < swapped.distance < 1
        assert swapped.gain > 0


def test_a_swapped_layer_is_the_nearest_scaled_one(draw: Any) -> None:
    frame = draw.frame(6, 4, dtype=torch.float32)
    for weight in (3 * frame, 3 * frame.T):
        model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0]))
        model[0].weight.data.copy_(weight)
        x = draw.normal(2, weight.shape[1], dtype=torch.float32)
        before = model(x)
        report = to_unitary(model)
        assert report.swapped[0].gain == pytest.approx(3, rel=1e-5)
        assert torch.allclose(model(x), before, atol=1e-5)
        reloaded = nn.Sequential(OrthogonalLinear(weight.shape[1], weight.shape[0]))
        reloaded.load_state_dict(model.state_dict())
        assert torch.equal(reloaded(x), model(x))
    with pytest.raises(InvalidInputError, match="single layer"):
        to_unitary(nn.Linear(2, 2))


def test_what_cannot_be_swapped_is_told_before_anything_is(draw: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="'1' hold NaN") as caught:
        to_unitary(model)
    assert caught.value.code == "non_finite_weights"
    assert type(model[0]) is nn.Linear
    nn.init.zeros_(model[1].weight)
    turned = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    report = to_unitary(nn.Sequential(*model, turned))
    assert [s.name for s in report.swapped] == ["0"]
    reasons = {s.name: s.reason for s in report.skipped}
    assert reasons["1"].startswith("the weight is zero")
    assert reasons["2"] == "the weight is parametrized"


def test_layers_of_double_precision_stay_so(draw: Any) -> None:
    model = nn.ModuleList(
        [nn.Linear(4, 4), nn.Conv2d(2, 3, 3), nn.RNN(3, 4, batch_first=True)]
    ).double()
    assert len(to_unitary(model).swapped) == 3
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert model[1](draw.normal(1, 2, 5, 5)).dtype == torch.float64
    assert model[2](draw.normal(1, 6, 3))[0].dtype == torch.float64


def test_a_frozen_weight_becomes_a_frozen_frame() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight.requires_grad_(False)
    to_unitary(model)
    assert [layer.frame.requires_grad for layer in model] == [False, True]


def test_an_unknown_recurrence_is_refused() -> None:
    for wrong in ({"nonlinearity": "gelu"}, {"initialisation": "zeros"}):
        with pytest.raises(InvalidInputError, match="nonlinearity="):
            OrthogonalRNN(3, 5, **wrong)


def test_an_encoder_layer_that_reads_weights_answers_as_in_training(draw: Any) -> None:
    model = nn.TransformerEncoderLayer(16, 2, 16, dropout=0.0, batch_first=True).eval()
    assert {item.name for item in to_unitary(model).swapped} == {"linear1", "linear2"}
    x = torch.randn(2, 5, 16)
    with torch.no_grad():  # torch then takes the weights past the layers
        quick = model(x)
    assert torch.allclose(quick, model(x), atol=1e-5)
