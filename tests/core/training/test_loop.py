"""The loop: resuming, stopping early, refusing what is not a number, schedules, accumulation."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.methods import METHODS
from stiefel.methods.local import FolderRun, assemble
from stiefel.specs import parse_spec
from stiefel.specs.training import Schedule
from stiefel.training.determinism import deterministic_mode
from stiefel.training.optimizers import rate_factor
from stiefel.training.snapshots import Snapshots

DATA = {"kind": "arrays", "train": "art_1", "input": "x", "label": "y", "held_out": 0.25}
SPEC: dict[str, Any] = {
    "method": "train.dense",
    "network": {"family": "mlp", "hidden": [16], "dropout": 0.2, "normalisation": "batch"},
    "data": DATA,
    "batch_size": 8,
    "epochs": 3,
    "log_every": 3,
}


class Trial:
    """One training job on folders of its own."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.input, self.state, self.output = folder / "in", folder / "state", folder / "out"
        self.spec = parse_spec(SPEC | changes)
        self.input.mkdir(parents=True, exist_ok=True)
        source = np.random.default_rng(0)
        x = source.standard_normal((96, 12), dtype=np.float32)
        with (self.input / "train").open("wb") as file:
            np.savez(file, x=x, y=(x[:, 0] > 0).astype(np.int64))

    def attempt(self, *, stop_after: int | None = None) -> FolderRun:
        """Train; a wish to stop arrives after ``stop_after`` more steps."""

        def should_stop(step: int) -> bool:
            return stop_after is not None and len(run.reports) >= stop_after

        self.run = run = FolderRun(self.input, self.state, should_stop=should_stop)
        self.outcome = METHODS[self.spec.method].run(self.spec, run)
        return run

    def weights(self) -> dict[str, torch.Tensor]:
        """The delivered weights."""
        self.output.mkdir(exist_ok=True)
        delivery = next(d for d in self.outcome.deliveries if d.name == "model.safetensors")
        assemble(delivery, self.output / delivery.name)
        return load_file(self.output / delivery.name)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _refused_on_a_gpu() -> None:
    with deterministic_mode(True):
        assert torch.are_deterministic_algorithms_enabled()
        raise RuntimeError("cumsum_cuda does not have a deterministic implementation, but you ask")


def test_the_deterministic_mode_ends_with_the_run_and_names_what_it_refuses(
    tmp_path: Path,
) -> None:
    plain, strict = Trial(tmp_path / "plain"), Trial(tmp_path / "strict", deterministic=True)
    plain.attempt()
    strict.attempt()
    assert equal(plain.weights(), strict.weights())
    assert not torch.are_deterministic_algorithms_enabled()
    with pytest.raises(InvalidInputError) as caught:
        _refused_on_a_gpu()
    assert (caught.value.code, caught.value.field) == ("not_deterministic", "/deterministic")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("draw", range(4))
def test_stops_at_random_steps_leave_no_trace(draw: int, tmp_path: Path) -> None:
    optimizers: list[dict[str, Any]] = [
        {"name": "adamw"},
        {"name": "sgd"},
        {"name": "galore", "subspace": {"rank": 3, "period": 5}},
        {"name": "galore", "subspace": {"rank": 6, "period": 4, "energy": 0.9}},
    ]
    changes = {"checkpoint_every": 4, "optimizer": optimizers[draw]}
    whole = Trial(tmp_path / "whole", **changes)
    whole.attempt()
    pieces, chance, told = Trial(tmp_path / "pieces", **changes), random.Random(draw), []
    stops = 0
    while True:
        try:
            pieces.attempt(stop_after=chance.randint(1, 9))
            break
        except StopRequested:
            stops += 1
        finally:
            told += pieces.run.points
    assert stops >= 2
    assert equal(pieces.weights(), whole.weights())
    assert told == whole.run.points


def test_an_attempt_that_dies_without_a_word_costs_only_the_steps_since_its_checkpoint(
    tmp_path: Path,
) -> None:
    whole = Trial(tmp_path / "whole", checkpoint_every=4)
    whole.attempt()
    killed = Trial(tmp_path / "killed", checkpoint_every=4)

    class PowerCut(BaseException):
        """Nobody catches this."""

    class CutRun(FolderRun):
        def progress(self, done: int, total: int, *, unit: str, bytes_done: int = 0) -> None:
            if done == 11:
                raise PowerCut

    with pytest.raises(PowerCut):
        METHODS["train.dense"].run(killed.spec, CutRun(killed.input, killed.state))
    run = killed.attempt()
    assert run.reports[0][0] == 10  # the end of an epoch of nine steps is a checkpoint too
    assert equal(killed.weights(), whole.weights())


def test_patience_ends_a_run_that_no_longer_improves(tmp_path: Path) -> None:
    # Rates this small change no float32 weight enough to be better.
    still = {"name": "sgd", "learning_rate": 1e-30, "momentum": 0.0}
    plain = {"family": "mlp", "hidden": [16]}
    trial = Trial(tmp_path, patience=2, epochs=50, optimizer=still, network=plain)
    trial.attempt()
    assert trial.outcome.metrics["epochs"] == 3
    assert trial.outcome.metrics["best_step"] == 9


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_no_number_names_its_step_and_keeps_the_last_good_checkpoint(
    log_every: int, tmp_path: Path
) -> None:
    wild = {"name": "sgd", "learning_rate": 100.0, "momentum": 0.99}
    network = {"family": "mlp", "hidden": [16, 16, 16]}
    changes = {"optimizer": wild, "network": network, "data": DATA | {"task": "regression"}}
    trial = Trial(tmp_path, checkpoint_every=1, log_every=log_every, epochs=100, **changes)
    with pytest.raises(InvalidInputError) as caught:
        trial.attempt()
    assert caught.value.code == "loss_not_finite"
    step = int(caught.value.detail.rsplit(" ", 1)[-1])
    assert step == trial.run.checkpoints[-1] + 1
    weights, _ = Snapshots(trial.state, keep=2).load(trial.run.checkpoints[-1])
    assert all(x.isfinite().all() for x in weights.values())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_accumulated_gradients_are_those_of_the_whole_batch(precision: str, tmp_path: Path) -> None:
    # Batch normalisation and dropout see slices: leave them out.
    plain = {"network": {"family": "mlp", "hidden": [16]}, "precision": precision, "max_steps": 5}
    whole, sliced = Trial(tmp_path / "a", **plain), Trial(tmp_path / "b", accumulate=3, **plain)
    whole.attempt()
    sliced.attempt()
    tolerance = 1e-6 if precision == "float32" else 1e-3
    a, b = whole.weights(), sliced.weights()
    assert all(torch.allclose(a[name], b[name], atol=tolerance) for name in a)
    assert not equal(a, b) or precision == "bfloat16"


def test_training_starts_from_uploaded_weights(tmp_path: Path) -> None:
    first = Trial(tmp_path / "first")
    first.attempt()
    second = Trial(tmp_path / "second", weights="art_2", optimizer={"learning_rate": 1e-30})
    save_file(first.weights(), second.input / "weights")
    second.attempt()
    a, b = first.weights(), second.weights()
    assert all(torch.allclose(a[n], b[n]) for n in a if "running" not in n and "num" not in n)


@pytest.mark.parametrize(
    ("break_it", "tensor"),
    [
        (lambda w: w.pop("head.bias"), "head.bias"),
        (lambda w: w.update({"head.weight": torch.zeros(3, 3)}), "head.weight"),
        (lambda w: w.update({"tail.weight": torch.zeros(3)}), "tail.weight"),
        (lambda w: w.update({"head.weight": w["head.weight"].int()}), "head.weight"),
        (lambda w: w["hidden.0.linear.bias"].fill_(math.nan), "hidden.0.linear.bias"),
    ],
)
def test_weights_of_another_network_are_refused_by_tensor(
    break_it: Any, tensor: str, tmp_path: Path
) -> None:
    donor = Trial(tmp_path / "donor", max_steps=1)
    donor.attempt()
    weights = donor.weights()
    break_it(weights)
    trial = Trial(tmp_path / "trial", weights="art_2")
    save_file(weights, trial.input / "weights")
    with pytest.raises(InvalidInputError) as caught:
        trial.attempt()
    assert (caught.value.code, caught.value.tensor) == ("weights_do_not_fit", tensor)


def test_a_fresh_head_is_drawn_whatever_the_weights_hold(tmp_path: Path) -> None:
    donor = Trial(tmp_path / "donor", max_steps=1)
    donor.attempt()
    weights = donor.weights()
    weights["head.weight"] = torch.zeros(7, 16)
    del weights["head.bias"]
    still = {"optimizer": {"learning_rate": 1e-30}, "weights": "art_2"}
    trial = Trial(tmp_path / "trial", fresh=["head.*"], **still)
    save_file(weights, trial.input / "weights")
    trial.attempt()
    found = trial.weights()
    assert found["head.weight"].shape == (2, 16)
    assert torch.allclose(found["hidden.0.linear.weight"], weights["hidden.0.linear.weight"])
    other = Trial(tmp_path / "trial", fresh=["haed.*"], **still)
    shutil.rmtree(other.state)
    with pytest.raises(InvalidInputError, match="haed") as caught:
        other.attempt()
    assert (caught.value.code, caught.value.field) == ("pattern_matches_nothing", "/fresh/0")


def test_the_spec_of_the_model_card_can_be_submitted(tmp_path: Path) -> None:
    trial = Trial(tmp_path, max_steps=1)
    trial.attempt()
    card = next(d for d in trial.outcome.deliveries if d.name == "README.md").parts[0].read_text()
    spec = card.split("```json")[1].split("```")[0]
    assert parse_spec(json.loads(spec)) == trial.spec


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"batch_size": 4, "accumulate": 4}])
def test_batch_normalisation_of_one_example_is_refused(
    changes: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="one example at a time") as caught:
        Trial(tmp_path, **changes).attempt()
    assert (caught.value.code, caught.value.field) == ("batch_too_small", "/batch_size")
    assert "accumulate" in (caught.value.fix or "")


def test_batch_normalisation_in_a_network_of_another_library_too(tmp_path: Path) -> None:
    config = {"model_type": "resnet", "depths": [1], "hidden_sizes": [8], "embedding_size": 8}
    network = {"family": "transformers", "task": "image_classification", "config": config}
    trial = Trial(tmp_path, network=network, batch_size=1)
    with (trial.input / "train").open("wb") as file:
        np.savez(file, x=np.zeros((8, 3, 4, 4), np.float32), y=np.arange(8) % 2)
    with pytest.raises(InvalidInputError) as caught:
        trial.attempt()
    assert (caught.value.code, caught.value.field) == ("batch_too_small", "/batch_size")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    trial = Trial(tmp_path, weights="art_2")
    (trial.input / "weights").write_bytes(b"not tensors at all, but long enough to be read")
    with pytest.raises(InvalidInputError, match="not readable as safetensors"):
        trial.attempt()


def test_the_last_checkpoints_and_the_best_are_kept(tmp_path: Path) -> None:
    trial = Trial(tmp_path, checkpoint_every=2, keep_checkpoints=3)
    trial.attempt()
    kept = Snapshots(trial.state, keep=3).steps()
    best = trial.outcome.metrics["best_step"]
    assert kept == sorted({*trial.run.checkpoints[-3:], best})
    assert not list(trial.state.glob("*.partial"))


def test_schedules_have_the_values_of_their_formulas() -> None:
    def at(step: int, **spec: Any) -> float:
        return rate_factor(Schedule(**spec), step=step, steps=100, steps_per_epoch=10)

    assert [at(step, kind="constant", warmup_steps=4) for step in range(5)] == [
        0.25,
        0.5,
        0.75,
        1.0,
        1.0,
    ]
    assert at(0, kind="cosine") == 1.0
    assert math.isclose(at(50, kind="cosine"), 0.5)
    assert math.isclose(at(60, kind="linear", warmup_steps=20), 0.5)
    assert math.isclose(at(35, kind="exponential", factor_per_epoch=0.9), 0.9**3)
