"""Two processes train as one: the same bits every time, across stops, and near a single process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import DATA, Trial, equal

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.training.data.dataset import Batch
from stiefel.training.world import World

PLAIN = {
    "network": {"family": "mlp", "hidden": [16, 16]},
    "device": "cpu",
    "batch_size": 9,  # an odd example for one of the processes
    "max_steps": 14,
    "checkpoint_every": 4,
}


def test_two_processes_stopped_on_the_way_end_with_the_same_bits(tmp_path: Path) -> None:
    network = PLAIN["network"] | {"normalisation": "batch", "dropout": 0.1}
    changes = PLAIN | {"network": network, "devices": 2, "epochs": 30, "max_steps": 180}
    whole = Trial(tmp_path / "whole", **changes)
    whole.attempt()
    assert whole.run.reports[-1] == (180, 180, "step")
    pieces = Trial(tmp_path / "pieces", **changes)
    with pytest.raises(StopRequested):
        pieces.attempt(stop_after=2)  # the host hears of some steps only
    first = pieces.run.points
    pieces.attempt()
    assert equal(pieces.weights(), whole.weights())
    assert first + pieces.run.points == whole.run.points


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("train.dense", {"accumulate": 3}),
        # Dense and factored steps in one run.
        ("train.dlrt", {"warm_up": {"period": 2, "latest": 0.4}, "phase": 2}),
        ("train.oialr", {"delay": 4, "period": 3}),
        ("train.projunn", {"rank": 2}),
    ],
)
def test_two_processes_end_near_a_single_one(
    method: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    changes = PLAIN | {"method": method, "optimizer": {"name": "sgd"}} | changes
    one, two = Trial(tmp_path / "one", **changes), Trial(tmp_path / "two", devices=2, **changes)
    one.attempt()
    two.attempt()
    a, b = one.weights(), two.weights()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=2e-5, rtol=1e-4)


def test_an_error_in_the_processes_is_the_one_a_single_process_raises(tmp_path: Path) -> None:
    wild = {"name": "sgd", "learning_rate": 100.0, "momentum": 0.99}
    data = DATA | {"task": "regression"}
    trial = Trial(tmp_path, **PLAIN | {"devices": 2, "optimizer": wild, "data": data})
    with pytest.raises(InvalidInputError) as caught:
        trial.attempt()
    assert caught.value.code == "loss_not_finite"
    assert caught.value.field == "/optimizer/learning_rate"


def test_batch_normalisation_of_one_example_in_each_process_is_refused(tmp_path: Path) -> None:
    network = PLAIN["network"] | {"normalisation": "batch"}
    with pytest.raises(InvalidInputError, match="over 2 device") as caught:
        Trial(tmp_path, **PLAIN | {"network": network, "devices": 2, "batch_size": 2}).attempt()
    assert (caught.value.code, caught.value.field) == ("batch_too_small", "/batch_size")


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="a batch of 1 cannot be shared by 2 devices"):
        Trial(tmp_path, **PLAIN | {"devices": 2, "batch_size": 1})
    world = World(torch.device("cpu"))
    world.size = 2  # of a training set smaller than a batch only the run knows
    with pytest.raises(InvalidInputError, match="a batch of 1 cannot be shared by 2 devices"):
        world.share(Batch(torch.zeros(1, 3), torch.zeros(1)))
