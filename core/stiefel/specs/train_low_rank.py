"""``train.dlrt`` and ``train.oialr``: networks whose layers live as U S V^T."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from stiefel.specs.conversion import Patterns
from stiefel.specs.training import Optimizer, TrainingSpec

Rank = Annotated[int, Field(ge=1, le=65_536)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


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


class WarmUp(BaseModel):
    """Dense training until the ranks have settled (Cuttlefish, arXiv 2305.02538)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    period: Annotated[int, Field(ge=1, le=10_000_000)] = Field(
        default=100, description="Steps between two looks at the stable ranks"
    )
    window: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description="Looks over which a rank must have settled"
    )
    slope: Annotated[float, Field(gt=0.0, le=1e4)] = Field(
        default=0.1, description="A rank that moves less than this per look has settled"
    )
    rank_share: Share = Field(
        default=0.5, description="Ranks are at most this share of a layer's smaller side"
    )
    latest: Share = Field(
        default=0.3, description="Share of the run after which layers are factorised in any case"
    )


class TrainDlrtSpec(LowRankTrainingSpec):
    """Dynamical low-rank training; arXiv 2205.13571."""

    summary: ClassVar[str] = "Low-rank training that finds every layer's rank (DLRT)."

    method: Literal["train.dlrt"] = "train.dlrt"
    relative: bool = Field(
        default=True, description="False: the tail norm itself must be <= truncation_tolerance"
    )
    truncation_tolerance: Annotated[float, Field(ge=0.0, le=1e6)] = Field(
        default=0.1, description="tau: keep the least rank whose tail norm is <= tau * ||S||"
    )
    initial_rank: Rank | None = Field(
        default=None, description="Default: min(64, half the break-even rank) of each layer"
    )
    min_rank: Rank | None = None
    max_rank: Rank | None = None
    adaptive: bool = Field(default=True, description="False keeps the initial ranks")
    grow_only: bool = Field(
        default=False,
        description="Ranks rise until 1 - tau^2 of the energy is explained, and never fall "
        "(InRank, arXiv 2306.11250); start with a small initial_rank",
    )
    warm_up: WarmUp | None = Field(
        default=None, description="Train dense first; the ranks then come from the weights"
    )
    phase: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="Batches from one truncation to the next"
    )
    variant: Literal["exact", "parallel"] = "exact"
    freeze_from: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.8, description="Share of the run after which ranks stay"
    )

    @field_validator("truncation_tolerance")
    @classmethod
    def _below_one(cls, value: float, info: ValidationInfo) -> float:
        if value >= 1.0 and info.data.get("relative", True):
            raise ValueError("a relative truncation_tolerance is below 1; or set relative: false")
        return value

    @model_validator(mode="after")
    def _agreeing(self) -> TrainDlrtSpec:
        if self.warm_up is not None and self.initial_rank is not None:
            raise ValueError("initial_rank has no meaning with warm_up, which finds the ranks")
        if self.grow_only and not self.adaptive:
            raise ValueError("grow_only needs adaptive ranks")
        least, most = self.min_rank, self.max_rank
        if least is not None and most is not None and most < least:
            raise ValueError("max_rank is below min_rank")
        return self


class TrainOialrSpec(LowRankTrainingSpec):
    """Orthogonality-informed adaptive low-rank training; arXiv 2401.08505."""

    summary: ClassVar[str] = "Dense warm-up, then frozen bases and a shrinking core (OIALR)."

    method: Literal["train.oialr"] = "train.oialr"
    optimizer: Optimizer = Optimizer(name="adamw", learning_rate=3e-4, weight_decay=0.01)
    delay: Annotated[int, Field(ge=0, le=10_000_000)] | None = Field(
        default=None,
        description="Dense steps before the transition; left out: 1000, and a quarter of the run "
        "at most",
    )
    period: Annotated[int, Field(ge=1, le=10_000_000)] | None = Field(
        default=None,
        description="Steps between tests of the ranks; left out: 500, and a twentieth of the run "
        "at most",
    )
    cutoff: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        default=0.15, description="Drop singular values below this share of the largest"
    )
    tested_share: Share = Field(
        default=0.1,
        description="The j-th test looks at the last j * tested_share of the layers, because "
        "those near the output settle first",
    )
    rest: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Tests that a layer sits out after its rank fell"
    )

    def timing(self, steps: int) -> tuple[int, int]:
        """``delay`` and ``period`` of a run of ``steps`` steps."""
        delay = min(1000, steps // 4) if self.delay is None else self.delay
        period = max(1, min(500, steps // 20)) if self.period is None else self.period
        return delay, period

    def doubts(self, steps: int) -> list[str]:
        """See :meth:`TrainingSpec.doubts`."""
        if self.delay is None or self.delay < steps:
            return []
        ends = f"The run ends after {steps} steps, before its dense warm-up of {self.delay}"
        return [f"{ends}: no layer will be factored. Give a smaller /spec/delay, or leave it out."]
