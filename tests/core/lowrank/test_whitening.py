"""Data-aware factors: predicted error, optimality, repair, bias, sharing, a whole model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stiefel.errors import InvalidInputError
from stiefel.lowrank import load_factored
from stiefel.projection.calibration import collect_moments, factorize_model, input_rows
from stiefel.projection.sequential import CrossMoment, factorize_sequentially, fit
from stiefel.projection.whitening import SecondMoment, factorize_whitened, moment_root


def moment_of(x):
    moment = SecondMoment(x.shape[-1])
    for rows in x.split(7):
        moment.add(rows)
    return moment


@pytest.fixture
def inputs(normal):
    """Correlated, with a mean far from zero."""
    return normal(200, 12) @ normal(12, 12) * torch.logspace(0, -3, 12, dtype=torch.float64) + 2


def error(x, weight, result, bias=0.0):
    return float(torch.linalg.norm(x @ (weight - result.factor_out @ result.factor_in).mT - bias))


@pytest.mark.parametrize("factors", ["balanced", "us_v"])
def test_predicted_error_is_measured_and_beats_plain_truncation(normal, inputs, factors):
    weight = normal(9, 12)
    result = factorize_whitened(weight, moment_of(inputs), 4, factors=factors)
    assert result.shift == 0
    assert error(inputs, weight, result) == pytest.approx(result.predicted_error, rel=1e-6)
    u, s, vh = torch.linalg.svd(weight)
    plain = (u[:, :4] * s[:4]) @ vh[:4]
    assert result.predicted_error < 0.7 * float(torch.linalg.norm(inputs @ (weight - plain).mT))


def test_centred_moment_with_corrected_bias_is_better_still(normal, inputs):
    weight, moment = normal(9, 12), moment_of(inputs)
    plain = factorize_whitened(weight, moment, 3)
    result = factorize_whitened(weight, moment, 3, correct_bias=True)
    measured = error(inputs, weight, result, result.bias_change)
    assert measured == pytest.approx(result.predicted_error, rel=1e-6)
    assert measured < plain.predicted_error


def test_rank_may_be_chosen_from_the_whitened_values(normal, inputs):
    weight = normal(9, 12)
    result = factorize_whitened(weight, moment_of(inputs), lambda sigma: int((sigma > 1).sum()))
    assert result.rank == result.factor_in.shape[0]
    assert result.predicted_error <= 9**0.5


@pytest.mark.parametrize("rows", [1, 5])
def test_a_singular_moment_is_repaired(normal, rows):
    x, weight = normal(rows, 12), normal(9, 12)
    result = factorize_whitened(weight, moment_of(x), rows)
    assert result.shift > 0
    assert error(x, weight, result) < 1e-2 * float(torch.linalg.norm(x @ weight.mT))
    assert result.factor_in.isfinite().all()


def test_bad_calibration_is_refused(normal):
    moment = SecondMoment(12)
    with pytest.raises(InvalidInputError, match="NaN"):
        moment.add(torch.full((2, 12), torch.nan))
    with pytest.raises(InvalidInputError, match="width 11"):
        moment.add(normal(2, 11))
    with pytest.raises(InvalidInputError, match="all zero"):
        moment_root(moment.matrix)
    moment.add(normal(30, 12))
    with pytest.raises(InvalidInputError, match="rank 10"):
        factorize_whitened(normal(9, 12), moment, 10)
    with pytest.raises(InvalidInputError, match="inputs of width 12"):
        factorize_whitened(normal(9, 13), moment, 2)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.q, self.k = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        tokens = torch.relu(self.conv(x)).flatten(2).mT
        return torch.softmax(self.q(tokens) @ self.k(tokens).mT, -1)


def test_patches_are_the_rows_of_a_convolution(normal):
    conv = nn.Conv2d(3, 4, (3, 2), stride=(1, 2), padding=1, dilation=(2, 1), bias=False).double()
    x = normal(2, 3, 7, 8)
    rows = input_rows(conv, x)
    flat = (rows @ conv.weight.reshape(4, -1).mT).mT
    torch.testing.assert_close(flat.reshape(2, 4, *conv(x).shape[2:]), conv(x))
    with pytest.raises(InvalidInputError, match="ungrouped"):
        input_rows(nn.Conv2d(4, 4, 3, groups=2), x)


def test_a_model_is_factored_under_a_budget_and_loads(generator):
    net = Net().eval()
    batches = [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(3)]
    moments = collect_moments(net, ["conv", "q", "k"], batches)
    assert moments["q"] is moments["k"]
    assert moments["q"].count == 3 * 4 * 16
    result = factorize_model(net, moments, budget=400)
    spent = sum(r.factor_out.numel() + r.factor_in.numel() for r in result.layers.values())
    assert 300 < spent <= 400
    loaded = load_factored(Net().eval(), result.tensors)
    assert set(loaded.factored) == {"conv", "q", "k"}
    assert torch.linalg.norm(loaded.model(batches[0]) - net(batches[0])) < torch.linalg.norm(
        net(batches[0])
    )
    with pytest.raises(InvalidInputError, match="spare"):
        collect_moments(net, ["spare"], batches)
    with pytest.raises(InvalidInputError, match="either"):
        factorize_model(net, moments)


def _tanh_network(generator):
    net = nn.Sequential(
        nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 16)
    ).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return net.eval()


def test_sequential_factors_repair_what_earlier_layers_spoilt(generator):
    net = _tanh_network(generator)
    spread = torch.randn(24, 24, generator=generator, dtype=torch.float64)
    batches = list((torch.randn(512, 24, generator=generator).double() @ spread + 1).split(128))
    moments = collect_moments(net, ["0", "2", "4"], batches)
    ranks = {"0": 6, "2": 6, "4": 6}
    errors = []
    for compressed in (
        factorize_model(net, moments, ranks=ranks),
        factorize_sequentially(net, moments, batches, ranks=ranks),
    ):
        twin = load_factored(_tanh_network(generator), compressed.tensors).model
        x = torch.cat(batches)
        with torch.no_grad():
            errors.append(float(torch.linalg.norm(twin(x) - net(x))))
    assert errors[1] < 0.97 * errors[0]


def test_sequential_factors_of_full_rank_change_nothing(generator):
    net = _tanh_network(generator)
    batches = list(torch.randn(256, 24, generator=generator).double().split(64))
    moments = collect_moments(net, ["0", "2", "4"], batches)
    compressed = factorize_sequentially(
        net, moments, batches, ranks={"0": 24, "2": 32, "4": 16}, correct_bias=False
    )
    for name in ("0", "2", "4"):
        product = compressed.tensors[f"{name}.factor_out"] @ compressed.tensors[f"{name}.factor_in"]
        assert torch.allclose(product, net.get_submodule(name).weight, atol=1e-8)


def test_the_fit_is_the_best_of_its_rank_for_received_inputs(generator):
    """Against the closed form: least squares first, then Eckart-Young in the received metric."""
    x = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    received = x + 0.3 * torch.randn(400, 12, generator=generator, dtype=torch.float64)
    weight = torch.randn(9, 12, generator=generator, dtype=torch.float64)
    moment = CrossMoment(12)
    moment.add(x[:100], received[:100])
    moment.add(x[100:], received[100:])
    result = fit(weight, moment, 4, correct_bias=False)
    fitted = torch.linalg.lstsq(received, x @ weight.T).solution.T
    r = torch.linalg.qr(received).R
    left, sigma, right = torch.linalg.svd(fitted @ r.T, full_matrices=False)
    best = (left[:, :4] * sigma[:4]) @ right[:4] @ torch.linalg.inv(r).T
    assert torch.allclose(result.factor_out @ result.factor_in, best, atol=1e-9)
    assert result.predicted_error == pytest.approx(float(sigma[4:].square().sum().sqrt()))
    residual = x @ weight.T - received @ best.T
    floor = x @ weight.T - received @ fitted.T
    assert float(residual.square().sum() - floor.square().sum()) == pytest.approx(
        result.predicted_error**2
    )
