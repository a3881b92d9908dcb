from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from stiefel.errors import InvalidInputError
from stiefel.linalg import orthogonality_defect
from stiefel.projection.network_fit import NetworkFitter
from stiefel.projection.normalisation import absorb_normalisations, absorbed


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (n_in, n_out) in enumerate(pairwise(widths)):
        layer = nn.Linear(n_in, n_out)
        with torch.no_grad():
            layer.weight.copy_(gaussian(n_out, n_in, seed=k) / n_in**0.5)
            layer.bias.copy_(0.1 * gaussian(n_out, seed=100 + k))
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def test_the_fit_answers_more_like_the_original_than_the_projection() -> None:
    original, inputs = network(8, 8, 6, 9), gaussian(200, 8)
    before = {k: v.clone() for k, v in original.state_dict().items()}
    names = ["0", "2", "4"]
    fit = NetworkFitter(original, inputs, layers=names, iterations=80, learning_rate=2e-2).fit()
    assert fit.loss < 0.75 * fit.initial_loss
    assert len(fit.history) == 80
    for name in names:
        weight = fit.network.get_parameter(f"{name}.weight") / fit.gains[name]
        frame = weight if weight.shape[0] >= weight.shape[1] else weight.mT
        assert float(orthogonality_defect(frame.detach())) < 1e-5
    assert all(torch.equal(v, before[k]) for k, v in original.state_dict().items())
    assert fit.network.state_dict().keys() == before.keys()


def test_the_same_generator_gives_the_same_bits_and_gains_stay_at_one() -> None:
    original, inputs = network(8, 8, 8), gaussian(64, 8)
    fits = [
        NetworkFitter(
            original, inputs, layers=["0", "2"], iterations=3, scale="none", batch=16
        ).fit()
        for _ in range(2)
    ]
    assert fits[0].history == fits[1].history
    assert fits[0].gains == {"0": 1.0, "2": 1.0}


def test_a_name_without_a_matrix_is_refused() -> None:
    for name in ("1", "nothing"):
        with pytest.raises(InvalidInputError, match=name):
            NetworkFitter(network(4, 4), gaussian(5, 4), layers=[name]).fit()


@pytest.mark.parametrize("inputs", [torch.empty(0, 4), torch.full((3, 4), torch.nan)])
def test_inputs_that_tell_nothing_are_refused(inputs: Tensor) -> None:
    with pytest.raises(InvalidInputError, match="empty or not finite"):
        NetworkFitter(network(4, 4), inputs, layers=["0"]).fit()


def settled(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> nn.BatchNorm1d | nn.BatchNorm2d:
    count = norm.num_features
    with torch.no_grad():
        norm.weight.copy_(gaussian(count, seed=1))
        norm.bias.copy_(gaussian(count, seed=2))
    norm.running_mean = gaussian(count, seed=3)
    norm.running_var = gaussian(count, seed=4).square() + 0.1
    return norm


def test_absorbing_keeps_the_function_of_linear_layers_and_convolutions() -> None:
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), settled(nn.BatchNorm2d(5)), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(5 * 16, 7),
        settled(nn.BatchNorm1d(7)),
        nn.LayerNorm(7),
    ).eval()
    plain = absorb_normalisations(model)
    x = gaussian(4, 3, 6, 6)
    assert torch.allclose(plain(x), model(x), atol=1e-4)
    kinds = [type(m) for m in plain.modules()]
    assert nn.BatchNorm2d not in kinds
    assert nn.BatchNorm1d not in kinds
    assert nn.LayerNorm in kinds


def test_absorbing_without_statistics_or_with_wrong_ones_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(InvalidInputError, match="running statistics"):
        absorb_normalisations(model)
    with pytest.raises(InvalidInputError, match="channels"):
        absorbed(torch.ones(3, 3), None, mean=torch.ones(4), variance=torch.ones(4))
