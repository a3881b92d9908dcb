"""``train.dlrt`` and ``train.oialr``: networks whose layers live as U S V^T."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stiefel.specs.conversion import Patterns
from stiefel.specs.training import Optimizer, TrainingSpec

Rank = Annotated[int, Field(ge=1, le=65_536)]


class LowRankTrainingSpec(TrainingSpec):
    """Which layers are factorised."""

    include: Patterns = Field(default=("*",), description="Shell patterns on layer names")
    exclude: Patterns = Field(default=(), description="Patterns that override include")
    keep_last: bool = Field(default=True, description="Leave the head dense")

    @model_validator(mode="after")
    def _no_scaled_gradients(self) -> LowRankTrainingSpec:
        if self.precision == "float16":
            raise ValueError("low-rank training needs precision float32 or bfloat16")
        return self


class TrainDlrtSpec(LowRankTrainingSpec):
    """Dynamical low-rank training; arXiv 2205.13571."""

    summary: ClassVar[str] = "Low-rank training that finds every layer's rank (DLRT)."

    method: Literal["train.dlrt"] = "train.dlrt"
    truncation_tolerance: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.1, description="tau: keep the least rank whose tail norm is <= tau * ||S||"
    )
    initial_rank: Rank | None = Field(
        default=None, description="Default: min(64, half the break-even rank) of each layer"
    )
    min_rank: Rank | None = None
    max_rank: Rank | None = None
    adaptive: bool = Field(default=True, description="False keeps the initial ranks")
    phase: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Batches from one truncation to the next"
    )
    variant: Literal["exact", "parallel"] = "exact"
    freeze_from: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.8, description="Share of the run after which ranks stay"
    )


class TrainOialrSpec(LowRankTrainingSpec):
    """Orthogonality-informed adaptive low-rank training; arXiv 2401.08505."""

    summary: ClassVar[str] = "Dense warm-up, then frozen bases and a shrinking core (OIALR)."

    method: Literal["train.oialr"] = "train.oialr"
    optimizer: Optimizer = Optimizer(name="adamw", learning_rate=3e-4, weight_decay=0.01)
    delay: Annotated[int, Field(ge=0, le=10_000_000)] = Field(
        default=1000, description="Dense steps before the transition"
    )
    period: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=500, description="Steps between tests of the ranks"
    )
    cutoff: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.15, description="Drop singular values below this share of the largest"
    )
