"""What a job may ask of DLRT: warm-up with Cuttlefish's switch, growth, both tolerances."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_loop import DATA, Trial, equal

from stiefel.errors import InvalidInputError, StopRequested
from stiefel.specs import parse_spec
from stiefel.specs.base import InvalidSpecError

SPEC: dict[str, Any] = {
    "method": "train.dlrt",
    "network": {"family": "mlp", "hidden": [24, 20]},
    "phase": 2,
    "batch_size": 8,
    "epochs": 3,
    "freeze_from": 1.0,
    "schedule": {"kind": "cosine"},
}
WARM_UP = {"period": 3, "window": 1, "slope": 2.0, "rank_share": 0.4, "latest": 0.9}


def curve(trial: Trial, name: str) -> list[float]:
    return [values[name] for _, values in trial.run.points if name in values]


def ranks(trial: Trial) -> dict[str, list[float]]:
    names = {n for _, values in trial.run.points for n in values if n.startswith("rank/")}
    return {name: curve(trial, name) for name in names}


def test_ranks_come_from_the_warm_up(tmp_path: Path) -> None:
    trial = Trial(tmp_path, **SPEC, warm_up=WARM_UP)
    trial.attempt()
    dense = curve(trial, "dense")
    assert dense[-1] == 0.0
    assert all(curve[-1] <= 8 for curve in ranks(trial).values())


def test_a_run_too_restless_to_settle_switches_at_the_latest(tmp_path: Path) -> None:
    restless = WARM_UP | {"slope": 1e-6, "latest": 0.5}
    trial = Trial(tmp_path, **SPEC, warm_up=restless)
    trial.attempt()
    assert curve(trial, "dense") == [1.0, 0.0, 0.0]  # one evaluation per epoch of nine steps


@pytest.mark.parametrize("stop_after", [2, 7, 16])
def test_a_warm_up_that_was_stopped_goes_on_with_the_same_bits(
    stop_after: int, tmp_path: Path
) -> None:
    changes = SPEC | {"warm_up": WARM_UP | {"latest": 0.4, "slope": 1e-6}, "checkpoint_every": 2}
    whole, pieces = Trial(tmp_path / "whole", **changes), Trial(tmp_path / "pieces", **changes)
    whole.attempt()
    with pytest.raises(StopRequested):
        pieces.attempt(stop_after=stop_after)
    pieces.attempt()
    assert equal(pieces.weights(), whole.weights())


def test_the_best_evaluation_may_lie_before_the_switch(tmp_path: Path) -> None:
    # The rate falls to nothing but the factors lose what rank 1 cannot hold.
    late = WARM_UP | {"latest": 0.7, "slope": 1e-6, "rank_share": 0.05}
    trial = Trial(tmp_path, **SPEC, warm_up=late, deliver="best", max_rank=1, min_rank=1)
    trial.attempt()
    assert trial.outcome.metrics["best_step"] in (9, 18)
    assert (24, 12) in [tuple(w.shape) for w in trial.weights().values()]


def test_growth_never_lowers_a_rank(tmp_path: Path) -> None:
    growth = {"grow_only": True, "initial_rank": 2, "truncation_tolerance": 0.005}
    trial = Trial(tmp_path, **SPEC, **growth, optimizer={"learning_rate": 0.03})
    trial.attempt()
    for curve_ in ranks(trial).values():
        assert curve_ == sorted(curve_)
    assert max(curve_[-1] for curve_ in ranks(trial).values()) > 2


def test_an_absolute_tolerance_bounds_the_tail_itself(tmp_path: Path) -> None:
    # No core is as large as this: every rank falls to its lower bound.
    absolute = {"relative": False, "truncation_tolerance": 1e5, "min_rank": 3}
    trial = Trial(tmp_path, **SPEC | absolute)
    trial.attempt()
    assert {curve_[-1] for curve_ in ranks(trial).values()} == {3.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truncation_tolerance": 1.5}, "below 1"),
        ({"warm_up": {}, "initial_rank": 4}, "no meaning"),
        ({"grow_only": True, "adaptive": False}, "adaptive"),
        ({"optimizer": {"name": "galore"}}, "use train.dense"),
        ({"min_rank": 5, "max_rank": 4}, "below min_rank"),
        ({"warm_up": {"latest": 0.0}}, "greater than 0"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSpecError, match=message):
        parse_spec(SPEC | {"data": DATA} | changes)
    assert issubclass(InvalidSpecError, InvalidInputError)
