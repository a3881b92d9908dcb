"""``train.projunn``: networks whose weights stay orthogonal or unitary; arXiv 2203.05483."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from stiefel.specs.conversion import Patterns
from stiefel.specs.training import Optimizer, TrainingSpec


class TrainProjunnSpec(TrainingSpec):
    """Which layers are unitary, and how they step."""

    summary: ClassVar[str] = "Training with orthogonal or unitary weights by rank-k updates."

    method: Literal["train.projunn"] = "train.projunn"
    optimizer: Optimizer = Field(
        default=Optimizer(name="rmsprop"), description="Of all parameters that are not unitary"
    )
    include: Patterns | None = Field(
        default=None,
        description="Shell patterns on names of layers to make unitary. Default: none where the "
        "network has unitary layers of its own (rnn, orthogonal_cnn), else all but the head",
    )
    exclude: Patterns = Field(default=(), description="Patterns that override include")
    keep_scale: bool = Field(
        default=True, description="Scale each new layer by the mean singular value of the old"
    )
    variant: Literal["tangent", "direct", "cayley"] = Field(
        default="tangent", description="projUNN-T, projUNN-D, or the Cayley map"
    )
    rank: Annotated[int, Field(ge=1, le=4096)] = Field(
        default=1, description="Rank of every update; a smaller layer takes its own size"
    )
    approximation: Literal["range", "lsi", "columns"] = Field(
        default="range", description="How a dense gradient is brought to that rank"
    )
    learning_rate_divider: Annotated[float, Field(gt=0.0, le=1e6)] = Field(
        default=32.0, description="Unitary layers learn at learning_rate over this"
    )
    unitary_momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    scaling: Literal["none", "rmsprop", "adam"] = Field(
        default="rmsprop", description="How unitary steps are scaled; one number per matrix"
    )

    @model_validator(mode="after")
    def _no_scaled_gradients(self) -> TrainProjunnSpec:
        if self.precision == "float16":
            raise ValueError("unitary training needs precision float32 or bfloat16")
        return self
