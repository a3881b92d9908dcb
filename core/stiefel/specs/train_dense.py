"""``train.dense``: no constraint; the baseline that every other training method is held against."""

from __future__ import annotations

from typing import ClassVar, Literal

from stiefel.specs.training import TrainingSpec


class TrainDenseSpec(TrainingSpec):
    """Ordinary training."""

    summary: ClassVar[str] = "Ordinary training without a constraint, as the baseline."

    method: Literal["train.dense"] = "train.dense"
